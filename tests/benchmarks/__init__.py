"""Measurements that the README quotes. Each module is a command; none is a test."""
