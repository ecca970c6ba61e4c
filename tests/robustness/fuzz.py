"""Hostile input by the thousand, for every file that is read.

    python -m tests.robustness.fuzz [--examples 2000]

Whatever a file holds, the command ends with status 0 or 1, says why in one printable line, and soon, in little memory.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spectrum.files import selection_path
from spectrum.layer_types import MODULE_PATH
from spectrum.scanning.store import ScanStore
from spectrum.selection.entries import render_axolotl
from tests.helpers.command import Finished, run, tiny_llama

SECONDS = 20  # for one input; what needs longer hangs
MEMORY = 1 << 30  # for one input, in bytes of resident memory above what was there

INDEX = "model.safetensors.index.json"

# Where YAML, a terminal or a pattern would see something else than a name.
ODD_TEXTS = (
    "",
    " ",
    "a\nb",
    "a: b",
    "- a",
    "#",
    "'",
    '"',
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\r",
    "\0",
    "\x7f",
    "\x9b31m",
    "\u202egnp",
    "\u2028",
    "\ud800",
    ".*",
    "(",
    "..",
    "/",
    "../x",
    "null",
    "inf",
    "x" * 300,
)
YAML_TRAPS = (
    *("1", "01", "08", "1.5", "1e5", "1.0e5", "1_000", "_", "_1", "0_", "0x1f", "0x_", "0b1", "0b_", "0o7", "1-2"),
    *("null", "Null", "NULL", "true", "True", "no", "off", "y", "n", "Y", "N", "inf", "nan", "infinity", "e", "None"),
    *("2024-01-01", "2024-13-45", "2024-1-1", "1.", "1.e5", "1.2.3", "0.0", "a.", "a-", "a/", "12e03", "0x1.8p3"),
)


# Values and edits of JSON.


def _deep(depth: int) -> str:
    """Stands for lists nested so deep, which Python's own encoder would not write."""
    return f"@deep {depth}@"


def as_text(value: object) -> str:
    """JSON, with stand-ins for depth replaced by depth."""

    def nested(found: re.Match[str]) -> str:
        return "[" * int(found[1]) + "]" * int(found[1])

    return re.sub(r'"@deep (\d+)@"', nested, json.dumps(value))


numbers = (
    st.integers(-3, 40)
    | st.sampled_from([2**31, 2**53, 2**62, 2**63, 2**64, 10**9, 10**12, 10**15, 10**30, 10**400, -(2**63)])
    | st.floats()
)
texts = st.sampled_from(ODD_TEXTS) | st.sampled_from(YAML_TRAPS) | st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.integers(1, 3000).map(_deep),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@dataclass(frozen=True)
class Edit:
    """One change to a JSON value: what to do at the end of a path of children, each by its number."""

    path: tuple[int, ...]
    how: str
    value: Any
    key: str

    def apply(self, content: Any) -> Any:
        """The value with the change; containers in it are changed in place."""
        parent: Any = None
        at: Any = None
        here = content
        for step in self.path:
            if not isinstance(here, dict | list) or not here:
                break
            parent = here
            at = list(here)[step % len(here)] if isinstance(here, dict) else step % len(here)
            here = here[at]
        if parent is None or self.how == "replace all":
            return self.value if self.how == "replace all" else content
        if self.how == "delete":
            del parent[at]
        elif self.how == "add":
            if isinstance(parent, dict):
                parent[self.key] = self.value
            else:
                parent.append(self.value)
        elif self.how == "rename" and isinstance(parent, dict):
            parent[self.key] = parent.pop(at)
        elif self.how == "copy" and isinstance(parent, dict):
            parent[self.key] = here
        elif self.how == "nest":
            parent[at] = {self.key: here}
        else:
            parent[at] = self.value
        return content


def edits(replacements: st.SearchStrategy[Any] = values, most: int = 3) -> st.SearchStrategy[list[Edit]]:
    """A few changes to JSON."""
    how = st.sampled_from(["set"] * 6 + ["delete", "add", "rename", "copy", "nest"] * 2 + ["replace all"])
    path = st.lists(st.integers(0, 99), min_size=1, max_size=4).map(tuple)
    return st.lists(st.builds(Edit, path, how, replacements, texts), max_size=most)


def edited(content: str, changes: Sequence[Edit]) -> str:
    """JSON text, changed."""
    value = json.loads(content)
    for change in changes:
        value = change.apply(value)
    return as_text(value)


raw_edits = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3)


def with_bytes(content: bytes, changes: Sequence[tuple[int, int]]) -> bytes:
    """Bytes, some of them replaced."""
    new = bytearray(content)
    for place, value in changes:
        if new:
            new[place % len(new)] = value
    return bytes(new)


# A place to run in.


class Arena:
    """A sound checkpoint, in one file and in shards, and a scan of it; put back as they were for each input."""

    def __init__(self, directory: Path) -> None:
        self.model, self.sharded = directory / "model", directory / "sharded"
        self.results, self.output = directory / "results", directory / "output"
        tiny_llama(self.model)
        tiny_llama(self.sharded, shards_of="1KB")
        assert (self.sharded / INDEX).exists()
        self._sound = {path: path.read_bytes() for path in [*self.model.iterdir(), *self.sharded.iterdir()]}
        self.archives = dict(_archives(self.model / "model.safetensors"))
        done = self.run(self.model)
        assert done.status == 0, done.err
        store = ScanStore(self.results, str(self.model))
        self.scan, self.sidecar = store.scan_path.read_text(), store.sidecar_path.read_text()

    def sound(self, path: Path) -> bytes:
        """A file of the checkpoint as it was made."""
        return self._sound[path]

    def reset(self) -> None:
        """Put everything back, and take every result away."""
        for directory in (self.model, self.sharded, self.results, self.output):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        for path, content in self._sound.items():
            path.write_bytes(content)

    def run(self, model: Path, *more: str) -> Finished:
        """The command, in this process."""
        places = ["--results-dir", str(self.results), "--output-dir", str(self.output)]
        with bounded():
            return run(Path(), "--model-name", str(model), *([] if "--check" in more else places), *more)

    def entries(self, model: Path) -> list[str]:
        """What a run has written for the trainer."""
        written = selection_path(self.output, str(model), "unfrozenparameters", "50", "yaml").read_text()
        assert_well_formed(written)
        found: list[str] = yaml.safe_load(written)["unfrozen_parameters"] or []
        return found


def _archives(file: Path) -> Iterator[tuple[str, bytes]]:
    """The same weights as torch saves them, by the format."""
    import safetensors.torch
    import torch

    for form, zipped in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save(safetensors.torch.load_file(file), buffer, _use_new_zipfile_serialization=zipped)
        yield form, buffer.getvalue()


class _Hang(BaseException):
    """Nothing but the fuzzer catches this."""


@contextmanager
def bounded() -> Iterator[None]:
    """Fail where what is done takes too long, or too much memory."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Hang

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    except _Hang:
        raise AssertionError(f"not done after {SECONDS} seconds") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < MEMORY, f"took {grown >> 20} MiB"


def assert_decent(done: Finished) -> None:
    """It did its job or said in one line why not, with nothing in it that a terminal would obey."""
    assert done.status in (0, 1)
    assert_printable(done.out, "\n")
    assert_printable(done.err, "\n\r")
    assert "Traceback" not in done.err
    errors = [line for line in done.err.splitlines() if line.startswith("spectrum: error: ")]
    assert len(errors) == done.status, done.err
    if done.status:
        assert done.out == ""
        assert done.err.endswith(f"{errors[0]}\n")
        assert not errors[0].startswith("spectrum: error: unexpected "), errors[0]  # a fault of the program's own
        assert "MemoryError" not in errors[0]


def assert_printable(text: str, but: str) -> None:
    """No character that is not shown, but these, and spaces of other widths."""
    bad = {c for c in text if not c.isprintable() and c not in but and unicodedata.category(c) != "Zs"}
    assert not bad, f"{bad!r} in {text!r}"


def assert_well_formed(written: str) -> None:
    """A list for a trainer is made of these lines alone, which no name can break out of."""
    first, *lines = written.removesuffix("\n").split("\n")
    assert first == "unfrozen_parameters:"
    name = MODULE_PATH.pattern
    form = re.compile(rf"- (\^{name}\$|{name}|'{name}')|# {name} layers", re.ASCII)
    assert all(form.fullmatch(line) for line in lines), written


# The targets: what is tried on an arena.


Check = Callable[[Arena, st.DataObject], None]


def weights(arena: Arena, data: st.DataObject) -> None:
    """A safetensors file: its header's bytes, values and length, and the length of its data."""
    path = arena.model / "model.safetensors"
    sound = arena.sound(path)
    length = int.from_bytes(sound[:8], "little")
    header, tail = sound[8 : 8 + length], sound[8 + length :]
    small = st.lists(st.integers(-1, 64) | numbers, max_size=4)
    dtypes = st.sampled_from(["F32", "F64", "BF16", "F8_E4M3", "F4", "U8", "I64", "BOOL", "C64", "float32", "Tensor"])
    header = edited(header.decode(), data.draw(edits(values | small | dtypes), "header")).encode()
    header = with_bytes(header, data.draw(raw_edits, "bytes of the header"))
    claimed = data.draw(st.just(len(header)) | st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]), "claimed length")
    cut = data.draw(st.just(0) | st.integers(-40, 40), "bytes more or less")
    content = claimed.to_bytes(8, "little") + header + tail
    path.write_bytes(content[:cut] if cut < 0 else content + bytes(cut))
    assert_decent(arena.run(arena.model))


def index(arena: Arena, data: st.DataObject) -> None:
    """The index of a sharded checkpoint."""
    path = arena.sharded / INDEX
    names = st.sampled_from(sorted(file.name for file in arena.sharded.iterdir()))
    content = edited(arena.sound(path).decode(), data.draw(edits(values | names), "index"))
    path.write_bytes(with_bytes(content.encode(), data.draw(raw_edits, "bytes")))
    assert_decent(arena.run(arena.sharded))


MODEL_TYPES = ("llama", "gpt2", "bert", "t5", "mixtral", "xmod", "mamba", "clip", "wav2vec2", "qwen2_vl", "nonesuch")
CLASSES = ("LlamaForCausalLM", "LlamaModel", "BertModel", "T5Model", "PreTrainedModel", "AutoModel", "LlamaConfig", "")
CONFIG_KEYS = (
    *("architectures", "auto_map", "model_type", "dtype", "torch_dtype", "quantization_config", "compression_config"),
    *("text_config", "vision_config", "num_labels", "id2label", "label2id", "rope_scaling", "rope_parameters"),
    *("attribute_map", "base_model_prefix", "tie_word_embeddings", "is_encoder_decoder", "pruned_heads", "use_cache"),
    *("num_experts", "num_local_experts", "num_hidden_layers", "hidden_size", "vocab_size", "head_dim", "languages"),
    *("layer_types", "transformers_version", "attn_implementation", "_attn_implementation", "sliding_window"),
    *("pad_token_id", "torchscript", "name_or_path", "_name_or_path", "adapters", "peft_config", "problem_type"),
    *("chunk_size_feed_forward", "output_attentions", "return_dict", "use_bidirectional_attention"),
)


def config(arena: Arena, data: st.DataObject) -> None:
    """A checkpoint's config."""
    path = arena.model / "config.json"
    content = json.loads(arena.sound(path))
    some = st.sampled_from(MODEL_TYPES + CLASSES) | st.lists(st.sampled_from(CLASSES), max_size=2)
    keys = st.sampled_from([*content, *CONFIG_KEYS])
    nested = st.dictionaries(keys, values | some, max_size=4)
    content |= data.draw(st.dictionaries(keys, values | some | nested, max_size=3), "settings")
    text = edited(as_text(content), data.draw(edits(values | some, most=2), "changes")) if _shallow(content) else None
    path.write_text(text or as_text(content))
    assert_decent(arena.run(arena.model))


def _shallow(content: object) -> bool:
    """Whether Python's own decoder reads it."""
    try:
        json.loads(as_text(content))
    except (ValueError, RecursionError):
        return False
    return True


def cache(arena: Arena, data: st.DataObject) -> None:
    """A cached scan and its sidecar."""
    import hashlib

    names = st.sampled_from(YAML_TRAPS) | st.sampled_from(["lm_head", "model.norm", "model.layers.0.mlp", "mlp"])
    scan = edited(arena.scan, data.draw(edits(values | names | numbers, most=4), "scan"))
    sidecar = json.loads(arena.sidecar)
    if data.draw(st.booleans(), "digest of the changed scan"):
        sidecar["scores_sha256"] = hashlib.sha256(scan.encode()).hexdigest()
    recorded = edited(json.dumps(sidecar), data.draw(edits(values | names | numbers, most=4), "sidecar"))
    model = str(arena.model)
    ScanStore(arena.results, model).scan_path.write_bytes(
        with_bytes(scan.encode(), data.draw(raw_edits, "bytes of the scan"))
    )
    if data.draw(st.booleans(), "with sidecar"):
        ScanStore(arena.results, model).sidecar_path.write_text(recorded)
    if data.draw(st.booleans(), "without the model"):
        shutil.rmtree(arena.model)
    done = arena.run(arena.model)
    assert_decent(done)
    if done.status == 0:
        known = json.loads(ScanStore(arena.results, model).scan_path.read_text())
        assert isinstance(known, dict)
        assert all(isinstance(entry, str) for entry in arena.entries(arena.model))


def journal(arena: Arena, data: st.DataObject) -> None:
    """What an interrupted scan left: no score that is neither the weight's own nor written there comes of it."""
    from spectrum.checkpoint.reader import open_checkpoint
    from spectrum.scanning.job import identity_of

    clean = _scores(arena.scan, arena.sidecar)
    checkpoint = open_checkpoint(str(arena.model))
    identity = json.dumps(identity_of(checkpoint), separators=(",", ":"))
    scores = [[w.parameter, 0, clean[w.name][0], clean[w.name][1:]] for w in checkpoint.weights]
    parameter_of = {w.name: w.parameter for w in checkpoint.weights}
    parts = data.draw(st.lists(st.lists(st.sampled_from(scores), max_size=4), max_size=4), "lines")
    lines = [identity, *(edited(json.dumps(part), data.draw(edits(most=2), "changes")) for part in parts)]
    if data.draw(st.integers(0, 4), "head changed") == 0:
        lines[0] = edited(identity, data.draw(edits(most=1), "head"))
    content = with_bytes("\n".join([*lines, ""]).encode(), data.draw(raw_edits, "bytes"))
    content = content[: len(content) - data.draw(st.integers(0, 30), "bytes less")]
    process = data.draw(st.integers(0, 2), "process")
    ScanStore(arena.results, str(arena.model)).journal_path(process).write_bytes(content)
    done = arena.run(arena.model)
    assert_decent(done)
    known = _loosely_read(content, identity.encode() + b"\n")
    if done.status == 0:
        store = ScanStore(arena.results, str(arena.model))
        found = _scores(store.scan_path.read_text(), store.sidecar_path.read_text())
    else:
        assert "NaN or infinity" in done.err
        found = {}
    for name, own in clean.items():
        listed = known.get(parameter_of[name], [])
        if name not in found:
            assert any(math.isnan(score[0]) for score in listed), name
        elif not all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(found[name], own, strict=True)):
            assert repr(found[name]) in map(repr, listed), (name, found[name])  # by which NaN is itself
    assert not list(arena.results.glob("*.jsonl"))


def _scores(scan: str, sidecar: str) -> dict[str, list[float]]:
    """Each layer's SNR and what lies at its edge, from the files of a scan."""
    edges = json.loads(sidecar)["edges"]
    return {name: [entry["snr"], *edges[name]] for name, entry in json.loads(scan).items()}


def _loosely_read(content: bytes, head: bytes) -> dict[str, list[list[float]]]:
    """Every score that some line of a journal with the right head could be said to hold."""
    known: dict[str, list[list[float]]] = {}
    if not content.startswith(head):
        return known
    for line in content[len(head) :].split(b"\n"):
        try:
            for name, _, snr, (above, below, gap, jump) in json.loads(line):
                score = [float(snr), int(above), int(below), float(gap), float(jump)]
                known.setdefault(str(name), []).append(score)
        except (ValueError, TypeError, RecursionError, OverflowError):
            continue
    return known


names = st.sampled_from(YAML_TRAPS) | st.from_regex(MODULE_PATH, fullmatch=True) | st.from_regex(r"[0-9eExXob_\-.]+")


def layer_names(arena: Arena, data: st.DataObject) -> None:
    """Names of layers in the list for the trainer: read from YAML, they are the same names."""
    allowed = names.filter(MODULE_PATH.fullmatch)
    types = data.draw(st.dictionaries(allowed, st.lists(allowed, max_size=3), max_size=3), "layers by type")
    embeddings = data.draw(st.lists(allowed, max_size=2), "embeddings")
    written = render_axolotl(types, embeddings)
    assert_well_formed(written)
    expected = [f"^{name}$" for name in embeddings] + [name for group in types.values() for name in group]
    assert (yaml.safe_load(written)["unfrozen_parameters"] or []) == expected


OPCODES = b"(.01234FGIJKLMNPQRSTUVX]abcdefghijlopqrstu}" + bytes(range(0x80, 0x99))


def archive(arena: Arena, data: st.DataObject) -> None:
    """A torch archive of either format: any of its bytes, steps of its pickle, and its length."""
    (arena.model / "model.safetensors").unlink()
    sound = arena.archives[data.draw(st.sampled_from(sorted(arena.archives)), "format")]
    start = max(0, sound.find(b"\x80\x02", 30))
    step = st.tuples(st.integers(start, start + 1500), st.sampled_from(OPCODES))
    content = with_bytes(sound, data.draw(raw_edits | st.lists(step, max_size=3), "bytes"))
    cut = data.draw(st.just(0) | st.integers(-400, 40) | st.integers(-len(sound), 0), "bytes more or less")
    (arena.model / "pytorch_model.bin").write_bytes(content[:cut] if cut < 0 else content + bytes(cut))
    assert_decent(arena.run(arena.model))


SECRET = "nobody-else-s-business"


def kinds(arena: Arena, data: st.DataObject) -> None:
    """Any file that is read or written, in the place of which there is something else; nothing outside is touched."""
    outside = arena.output.parent / "outside"
    outside.write_text(f"{SECRET}: [")
    model = data.draw(st.sampled_from([arena.model, arena.sharded]), "model")
    if data.draw(st.booleans(), "scanned before"):
        arena.run(model)
    (arena.output / "list.yaml").write_text("unfrozen_parameters:\n- model.norm\n")
    store = ScanStore(arena.results, str(model))
    results = [store.scan_path, store.sidecar_path, *(store.journal_path(number) for number in (0, 3))]
    places = [
        *sorted(model.iterdir()),
        *results,
        ScanStore(arena.results, str(model)).lock_path,
        arena.output / "list.yaml",
    ]
    place = data.draw(st.sampled_from(places), "place")
    kind = data.draw(st.sampled_from(["link", "hard link", "nowhere", "FIFO", "device", "directory", "sparse"]), "kind")
    place.unlink(missing_ok=True)
    if kind == "link":
        place.symlink_to(outside)
    elif kind == "hard link":
        place.hardlink_to(outside)
    elif kind == "nowhere":
        place.symlink_to(arena.output.parent / "nowhere")
    elif kind == "FIFO":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "directory":
        place.mkdir()
    else:
        place.touch()
        os.truncate(place, 1 << 40)
    more = data.draw(st.sampled_from([(), ("--rescan",), ("--check", str(arena.output / "list.yaml"))]), "options")
    done = arena.run(model, *more)
    if "--check" not in more:
        assert_decent(done)
    # What a hard link leads to is in the directory, whatever else it is called.
    assert kind == "hard link" or SECRET not in done.out + done.err
    assert outside.read_text() == f"{SECRET}: ["
    assert not (arena.output.parent / "nowhere").exists()


def entries(arena: Arena, data: st.DataObject) -> None:
    """A list of parameters, or a trainer's config: entries, patterns, and what else is in it."""
    parts = st.sampled_from(
        ["model", ".", "layers", "[0-9]", "+", "*", "(", ")", "|", "^", "$", "\\", "[", "{3}", "norm"]
    )
    pattern = st.lists(parts, max_size=8).map("".join)
    settings_of = st.dictionaries(
        st.sampled_from(
            ["adapter", "fsdp", "fsdp_config", "deepspeed", "plugins", "load_in_8bit", "freeze_mm_modules"]
        ),
        values,
        max_size=2,
    )
    written: dict[str, Any] = {
        "unfrozen_parameters": data.draw(st.lists(texts | pattern | values, max_size=4), "entries")
    }
    written |= data.draw(settings_of, "settings")
    check_of(arena, data, yaml.safe_dump(written, allow_unicode=data.draw(st.booleans(), "Unicode as it is")))


def other_lists(arena: Arena, data: st.DataObject) -> None:
    """A list for another reader than Axolotl: in a config of its own, or as text."""
    parts = st.sampled_from(["model", ".", "layers", "0", "*", "(", "|", "^", "$", "\\", "[", "]", "norm", "weight"])
    entry = st.lists(parts, max_size=6).map("".join) | texts
    listed = st.lists(entry, max_size=4) | st.lists(values, max_size=3) | entry | values
    selectors = st.lists(
        st.dictionaries(st.sampled_from(["path", "glob", "x"]), entry, max_size=2) | values, max_size=4
    )
    nemo = st.dictionaries(
        st.sampled_from(["freeze_modules", "unfreeze_modules", "freeze_vision_tower", "x"]),
        selectors | values,
        max_size=3,
    )
    keys = {
        "freeze_config": nemo | values,
        "callbacks": st.dictionaries(st.just("layer_freezing"), st.dictionaries(st.just("layer_names"), listed)),
        "trainer": st.dictionaries(st.just("layers_to_freeze_regex"), entry | values),
        "training": st.dictionaries(st.sampled_from(["lora", "freeze_layers"]), listed),
        "plugins": st.lists(st.just("SpectrumPlugin") | values, max_size=2),
        "spectrum_top_fraction": values,
        "base_model": texts,
        **dict.fromkeys(["frozen_modules", "frozen_res", "lora_target", "target_modules", "target_parameters"], listed),
        **dict.fromkeys(["lora_target_modules", "lora_target_parameters", "lora_dropout", "use_peft"], listed),
    }
    chosen = data.draw(st.lists(st.sampled_from(sorted(keys)), min_size=1, max_size=3, unique=True), "keys")
    written = {key: data.draw(keys[key], key) for key in chosen}
    words = st.sampled_from(
        ["--trainable_parameters", "--trainable-parameters-regex=", "--lora_target_modules", "--", "="]
    )
    lines = st.lists(st.lists(words | entry, max_size=4).map(" ".join), max_size=4).map("\n".join)
    text = data.draw(lines, "text") if data.draw(st.booleans(), "as text") else yaml.safe_dump(written)
    check_of(arena, data, text)


def check_of(arena: Arena, data: st.DataObject, text: str) -> None:
    """Checks a file with this text, and perhaps other bytes in it. It is read or refused in a line."""
    path = arena.output / "list.yaml"
    path.write_bytes(with_bytes(text.encode(errors="surrogatepass"), data.draw(raw_edits, "bytes")))
    done = arena.run(arena.model, "--check", str(path))
    assert done.status in (0, 1)
    assert_printable(done.out, "\n")
    assert_printable(done.err, "\n\r")
    assert "SPECTRUM_DEBUG=1 shows where" not in done.err  # as the command says of an unexpected error
    for line in done.out.splitlines():
        assert not line.startswith("ok: ") or done.status == 0


TARGETS: dict[str, Check] = {
    "weights": weights,
    "archive": archive,
    "kinds": kinds,
    "entries": entries,
    "other_lists": other_lists,
    "index": index,
    "config": config,
    "cache": cache,
    "journal": journal,
    "layer_names": layer_names,
}


class Campaign:
    """A target tried on many inputs. tried: how many so far."""

    def __init__(self, target: str, arena: Arena) -> None:
        self.tried = 0
        self._check, self._arena = TARGETS[target], arena

    def run(self, examples: int, *, derandomize: bool) -> None:
        """Try so many. Raises what Hypothesis finds, with the smallest input that shows it."""

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=derandomize,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def attempt(data: st.DataObject) -> None:
            self.tried += 1
            self._arena.reset()
            self._check(self._arena, data)

        attempt()


def main(argv: Sequence[str] | None = None) -> int:
    """Try targets at length; print how many inputs each took, and the smallest that each failure needs."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--examples", type=int, default=2000, help="inputs for each target (default: 2000)")
    args = parser.parse_args(argv)
    size = 16 << 30  # what torch maps without using it is in this, too
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    failures = 0
    for target in args.targets or TARGETS:
        with tempfile.TemporaryDirectory() as directory:
            arena = Arena(Path(directory))
            campaign, started, found = Campaign(target, arena), time.monotonic(), 0
            try:
                campaign.run(args.examples, derandomize=False)
            except Exception as error:  # a group of them, where there is more than one
                found = len(getattr(error, "exceptions", [error]))
                traceback.print_exception(type(error), error, error.__traceback__)
        failures += found
        seconds = time.monotonic() - started
        print(f"{target}: {campaign.tried} inputs, {found} failures, {seconds:.0f} s", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
