"""Which parameter of one class is which of another?"""

from __future__ import annotations

from collections.abc import Iterable

from spectrum.records import Parameter
from spectrum.verification.alignment import Alignment, align

LAYER = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")


def parameters(names: Iterable[str], shape: tuple[int, ...] = (4, 4)) -> dict[str, Parameter]:
    return {name: Parameter(shape, "float32") for name in names}


def tower(stack: str, count: int = 3) -> list[str]:
    return [f"{stack}.{i}.{name}" for i in range(count) for name in LAYER]


def changes(aligned: Alignment) -> list[tuple[str, str]]:
    return [(change.old, change.new) for change in aligned.changes]


def test_one_name_is_one_parameter_whatever_its_shape() -> None:
    names = [*tower("model.layers"), "lm_head.weight"]
    aligned = align(parameters(names), parameters(names, (5, 5)))
    assert dict(aligned.names) == {name: name for name in names}
    assert (aligned.only_base, aligned.only_trained, aligned.changes) == ((), (), ())


def test_a_model_without_its_head_lacks_the_beginning() -> None:
    base = [*tower("model.layers"), "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"]
    aligned = align(parameters(base), parameters(name.removeprefix("model.") for name in base[:-1]))
    assert aligned.only_base == ("lm_head.weight",)
    assert changes(aligned) == [("model.", "")]
    assert aligned.names["model.layers.2.mlp.up_proj.weight"] == "layers.2.mlp.up_proj.weight"
    assert aligned.names["model.norm.weight"] == "norm.weight"


def test_the_text_model_of_a_vision_model_begins_otherwise() -> None:
    text = [*tower("model.layers"), "model.norm.weight", "lm_head.weight"]
    whole = [*tower("model.visual.blocks"), *tower("model.language_model.layers"), "model.language_model.norm.weight"]
    aligned = align(parameters(text), parameters([*whole, "lm_head.weight"]))
    assert changes(aligned) == [("model.", "model.language_model.")]
    assert aligned.only_base == ()
    assert aligned.only_trained == tuple(tower("model.visual.blocks"))
    back = align(parameters([*whole, "lm_head.weight"]), parameters(text))
    assert back.only_base == tuple(tower("model.visual.blocks"))
    assert {other: name for name, other in back.names.items()} == dict(aligned.names)


def test_parts_that_begin_each_in_their_own_way_are_all_found() -> None:
    base = [*tower("language_model.model.layers"), *tower("vision_tower.layers"), "language_model.lm_head.weight"]
    trained = [*tower("model.language_model.layers"), *tower("model.vision_tower.layers"), "lm_head.weight"]
    shapes = parameters(base, (4, 4)) | parameters(tower("vision_tower.layers"), (6, 6))
    others = parameters(trained, (4, 4)) | parameters(tower("model.vision_tower.layers"), (6, 6))
    aligned = align(shapes, others)
    assert aligned.only_base == aligned.only_trained == ()
    assert aligned.names["vision_tower.layers.0.mlp.up_proj.weight"] == "model.vision_tower.layers.0.mlp.up_proj.weight"


def test_what_only_ends_alike_is_not_the_same() -> None:
    base = parameters(["pooler.dense.weight", "lm_head.dense.weight", "a.weight"])
    aligned = align(base, parameters(["classifier.dense.weight", "score.weight"]))
    assert dict(aligned.names) == {}


def test_other_shapes_are_other_parameters_but_for_the_number_of_rows() -> None:
    base = parameters(tower("model.layers"))
    assert not align(base, parameters(tower("layers"), (4, 5))).names
    assert len(align(base, parameters(tower("layers"), (6, 4))).names) == len(base)  # of a vocabulary, say


def test_no_two_parameters_become_one() -> None:
    base = parameters([*tower("a.layers"), *tower("b.layers")])
    aligned = align(base, parameters(tower("layers")))
    assert len(set(aligned.names.values())) == len(aligned.names) == 9
    assert len(aligned.only_base) == 9
