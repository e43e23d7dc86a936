"""ONNX: a model in the textual syntax of the standard, for engines that read such models.

A text is one graph with static shapes (see `tapml.operators.onnx`). A constant whose values are outside stands for the argument
of its name: "i3" is number 3 of a launch. `packed` makes the file of it that engines and viewers read, which takes the package
`onnx`.
"""

from __future__ import annotations

from tapml.languages.language import TRIAL, TRIAL_COUNT, Language, Reproducer


def packed(text: str) -> bytes:
    """The model as a file holds it; the same bytes for the same text. Raises ValueError for what is no such text."""
    import onnx.parser

    try:
        model = onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        said = error.args[0] if error.args else error
        raise ValueError(said.decode(errors="replace") if isinstance(said, bytes) else str(said)) from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


LANGUAGE = Language(
    name="onnx",
    title="ONNX",
    suffix="onnxtxt",
    lexer="text",
    generated=False,
    native=False,
    threads=False,
    trial=f"""<ir_version: 10, opset_import: ["" : 21]>
{TRIAL} (float[{TRIAL_COUNT}] i0) => (float[{TRIAL_COUNT}] o0)
<float two = {{2.0}}, float one = {{1.0}}>
{{
  twice = Mul (two, i0)
  o0 = Add (twice, one)
}}
""",
    packed=packed,
    packed_suffix="onnx",
    reproducer=Reproducer("run_onnxruntime.py", "onnxruntime"),
)
