"""A model's name: a path or an id as it is, and the id in the address of a repository's page."""

from __future__ import annotations

from pathlib import Path

import pytest

from spectrum.checkpoint.remote.model_names import ModelName, parse_model_name


@pytest.mark.parametrize("name", ["gpt", "acme/tiny-1.5b", "./tiny", "../a_b/c", "/", "~/tiny", "a/b/c", "hf.com/tiny"])
def test_a_path_and_an_id_stay_as_they_are(name: str) -> None:
    assert parse_model_name(name) == ModelName(name)
    if name != "/":
        assert parse_model_name(f"{name}/") == ModelName(name)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://huggingface.co/acme/tiny", ModelName("acme/tiny")),
        ("https://huggingface.co/acme/tiny/", ModelName("acme/tiny")),
        (" https://huggingface.co/acme/tiny\n", ModelName("acme/tiny")),
        ("http://www.huggingface.co/acme/tiny?library=transformers#files", ModelName("acme/tiny")),
        ("HTTPS://HuggingFace.co/Acme/Tiny", ModelName("Acme/Tiny")),
        ("huggingface.co/acme/tiny", ModelName("acme/tiny")),
        ("hf.co/acme/tiny/discussions/7", ModelName("acme/tiny")),
        ("https://huggingface.co/acme/tiny/tree/main", ModelName("acme/tiny")),
        ("https://huggingface.co/acme/tiny/tree/v2.1", ModelName("acme/tiny", "v2.1")),
        ("https://huggingface.co/acme/tiny/tree/refs/pr/12", ModelName("acme/tiny", "refs/pr/12")),
        ("https://huggingface.co/acme/tiny/tree/refs%2Fpr%2F12", ModelName("acme/tiny", "refs/pr/12")),
        ("https://huggingface.co/acme/tiny/tree/feature%2Fx", ModelName("acme/tiny", "feature/x")),
        ("https://huggingface.co/acme/tiny/blob/v2/config.json", ModelName("acme/tiny", "v2")),
        ("https://huggingface.co/acme/tiny/resolve/v2/model.safetensors?download=true", ModelName("acme/tiny", "v2")),
        ("https://huggingface.co/acme/tiny/commit/0123abc", ModelName("acme/tiny", "0123abc")),
        ("https://huggingface.co/acme/tiny.git", ModelName("acme/tiny")),
        ("https://huggingface.co/api/models/acme/tiny", ModelName("acme/tiny")),
        ("git@hf.co:acme/tiny.git", ModelName("acme/tiny")),
        ("hf://acme/tiny", ModelName("acme/tiny")),
        ("hf://acme/tiny@v2", ModelName("acme/tiny", "v2")),
        ("https://huggingface.co/gpt", ModelName("gpt")),
        ("https://huggingface.co/gpt/blob/main/README.md", ModelName("gpt")),
        ("https://huggingface.co/gpt/tree/v2", ModelName("gpt", "v2")),
    ],
)
def test_the_id_is_taken_from_an_address(address: str, expected: ModelName) -> None:
    assert parse_model_name(address) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("https://huggingface.co", "not the address of a model"),
        ("https://huggingface.co/models?search=tiny", "not the address of a model"),
        ("https://huggingface.co/docs/hub/index", "not the address of a model"),
        ("https://huggingface.co/datasets/acme/text", "of a data set"),
        ("https://huggingface.co/spaces/acme/demo", "of a space"),
        ("https://huggingface.co/acme/tiny/tree/main/onnx", "folder of acme/tiny"),
        ("https://huggingface.co/acme/tiny/blob/main/onnx/config.json", "folder of acme/tiny"),
        ("https://huggingface.company/acme/tiny", "not the address of a model"),
        ("https://models.example/acme/tiny", "not the address of a model"),
        ("git@models.example:acme/tiny.git", "not the address of a model"),
    ],
)
def test_what_names_no_model_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_model_name(text)


@pytest.mark.parametrize("endpoint", ["https://mirror.example", "https://mirror.example/hub/", "http://127.0.0.1:8080"])
def test_a_mirror_is_the_hub_too(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{endpoint.rstrip('/')}/acme/tiny/tree/v2"
    with pytest.raises(ValueError, match="not the address"):
        parse_model_name(address)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert parse_model_name(address) == ModelName("acme/tiny", "v2")
    assert parse_model_name("https://hf.co/acme/tiny") == ModelName("acme/tiny")


@pytest.mark.parametrize("name", ["acme/tiny", "hf.co/acme/tiny"])
def test_an_endpoint_that_is_no_address_is_no_mirror(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://[bad")
    assert parse_model_name(name) == ModelName("acme/tiny")


def test_a_directory_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("hf.co/acme/tiny", " spaces "):
        Path(name).mkdir(parents=True)
        assert parse_model_name(name) == ModelName(name)
