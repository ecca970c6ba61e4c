"""Every list that is written passes its own check, and trains what the selection says, in every format.

Not only Llama's names: in some models the embedding is tied to a parameter of a third name, which trainers see alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from spectrum.checkpoint.reader import of_model
from spectrum.records import LayerSnr, ScanResult
from spectrum.selection.selection import Selection, top_percent
from spectrum.trainers.checking.check import check_list
from spectrum.trainers.formats.trained import names, swift
from spectrum.trainers.lists import read_list
from spectrum.trainers.matching import AXOLOTL
from spectrum.trainers.unfreeze import unfreeze
from tests.helpers.architectures import ARCHITECTURES, bert, llama_sizes, longformer

SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def prophetnet() -> Any:
    sizes: dict[str, Any] = {"num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 2}
    config = t.ProphetNetConfig(
        vocab_size=64,
        hidden_size=32,
        num_decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **sizes,
    )
    return t.ProphetNetForConditionalGeneration(config)


def encoder_decoder() -> Any:
    decoder = bert()
    decoder.is_decoder = decoder.add_cross_attention = True
    config = t.EncoderDecoderConfig(encoder=bert().to_dict(), decoder=decoder.to_dict(), pad_token_id=0)
    return t.EncoderDecoderModel(config)


def t5gemma() -> Any:
    tower = t.T5GemmaModuleConfig(**llama_sizes(head_dim=8))
    return t.T5GemmaForConditionalGeneration(t.T5GemmaConfig(encoder=tower, decoder=tower, vocab_size=64))


def seamless(version: str) -> Callable[[], Any]:
    def build() -> Any:
        config = getattr(t, f"Seamless{version}Config")(
            vocab_size=64,
            t2u_vocab_size=32,
            hidden_size=32,
            speech_encoder_layers=1,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            speech_encoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            speech_encoder_intermediate_size=48,
            max_position_embeddings=32,
            num_adapter_layers=1,
        )
        return getattr(t, f"Seamless{version}ForTextToText")(config)

    return build


FAMILIES: Mapping[str, Callable[[], Any]] = {
    "marian": lambda: t.MarianMTModel(t.MarianConfig(**SEQ2SEQ, decoder_vocab_size=64)),
    "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(**SEQ2SEQ)),
    "prophetnet": prophetnet,
    "encoder-decoder": encoder_decoder,
    "t5gemma": t5gemma,
    "seamless-m4t": seamless("M4T"),
    "seamless-m4t-v2": seamless("M4Tv2"),
    # Names that begin one another.
    "longformer": longformer,
    "xlnet": lambda: t.XLNetLMHeadModel(t.XLNetConfig(vocab_size=32, d_model=16, n_layer=2, n_head=4, d_inner=24)),
}


def scanned(model: torch.nn.Module) -> ScanResult:
    """A scan in which the last layers of each type score highest."""
    checkpoint = of_model(model, "m")
    layers = tuple(LayerSnr(weight.name, weight.layer_type, 1.0 + i) for i, weight in enumerate(checkpoint.weights))
    return ScanResult("m", layers, (), checkpoint.provenance.info.layer_types, checkpoint.provenance)


@pytest.fixture(scope="module", params=[*ARCHITECTURES, *FAMILIES])
def model(request: pytest.FixtureRequest) -> Any:
    return {**ARCHITECTURES, **FAMILIES}[request.param]()


@pytest.fixture(scope="module")
def scan(model: Any) -> ScanResult:
    return scanned(model)


@pytest.mark.parametrize("percent", ["25", "50", "100"])
@pytest.mark.parametrize("embeddings", [True, False])
def test_a_list_passes_its_own_check_and_trains_the_same_in_every_format(
    model: Any, scan: ScanResult, percent: str, embeddings: bool, tmp_path: Path
) -> None:
    chosen = top_percent(scan, percent, embeddings=embeddings)
    assert scan.info is not None
    trained = set(scan.info.owners(chosen.trained()))
    values = dict(model.named_parameters())
    assert trained <= values.keys()
    for end in ends(model):
        assert any(end.weight is values[name] for name in trained) == embeddings
    if not trained:
        return

    list_file = chosen.to_yaml(tmp_path / "list.yaml")
    report = check_list(read_list(list_file), scan.info)
    assert report.problems == ()
    assert report.trained[AXOLOTL] == trained

    assert by_names(chosen) & values.keys() == trained
    assert by_swift(chosen, [*values]) == trained
    for selection in (chosen, list_file):
        assert {*unfreeze(model, selection).names} == trained
    assert scan.info.num_elements(chosen.trained()) == sum(values[name].numel() for name in trained)


def ends(model: Any) -> list[Any]:
    """The input embedding and the output head."""
    with suppress(NotImplementedError):  # a model of waveforms has neither
        modules = [model.get_input_embeddings(), model.get_output_embeddings()]
        return [module for module in modules if module is not None]
    return []


def by_names(chosen: Selection) -> set[str]:
    return set(names(chosen).text.splitlines())


def by_swift(chosen: Selection, parameters: list[str]) -> set[str]:
    """What ms-swift trains: the names that start with a prefix, and those that the regular expression finds."""
    words = swift(chosen).text.split()  # as the shell splits what it inserts
    prefixes, pattern = words[words.index("--trainable_parameters") + 1 :], "(?!)"
    if "--trainable_parameters_regex" in prefixes:
        at = prefixes.index("--trainable_parameters_regex")
        prefixes, pattern = prefixes[:at], prefixes[at + 1]
    return {name for name in parameters if name.startswith(tuple(prefixes)) or re.search(pattern, name)}


@pytest.mark.parametrize(
    ("build", "lines"),
    [
        (FAMILIES["marian"], ("lm_head.weight", "model.shared.weight")),
        (FAMILIES["bart"], ("lm_head.weight", "model.shared.weight")),
        (ARCHITECTURES["gpt2"], ("lm_head.weight", "transformer.wte.weight")),
    ],
)
def test_the_head_keeps_its_line_and_the_owner_has_one(build: Callable[[], Any], lines: tuple[str, ...]) -> None:
    assert top_percent(scanned(build()), "50").embedding_parameters() == lines
