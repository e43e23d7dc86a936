"""Which operators stay on the source whatever the target, and why. Known from the body alone, without torch.

    why = why_it_stays(body)           "it computes with complex numbers, which no target has"; "" for an operator that may move

Such an operator runs in PyTorch wherever the model runs. No compiler is asked for it, and its verdict is `skipped` with the
reason. `sort_of_stay` says of a single node what keeps it (for `tapml.operators.apart`).
"""

from __future__ import annotations

from tapml.operators.graph import Body, Node
from tapml.tensors import CARRIED_AS, COMPLEX, TensorSpec

# Layers that PyTorch runs in one call, step after step.
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")

# A call of a part of the model as its own Python code (`tapml.operators.parts`).
PART = "parts.call.default"

# Sorts that have no counterpart in another dtype.
OWN_DTYPE = ("code", "bits", "random")

# Calls whose result is as large as the data say, and that `tapml.operators.counted` does not write in another way.
SIZED = ("_unique", "_unique2", "unique_dim", "unique_consecutive", "_pack_padded_sequence", "_pad_packed_sequence")

REASONS = {
    "code": "it runs as the model's own Python code, which does not export ({why})",
    "complex": "it computes with complex numbers, which no target has",
    "bits": "it reads the bits of numbers as another dtype",
    "random": "it draws random numbers (here with a fixed seed, so that runs agree)",
    "loop": "it repeats a part of the model in one call ({word})",
    "size": "the size of what it gives depends on the data ({word})",
    "recurrent": "it is a recurrent layer in one call, which no target has",
}
_OTHER = "it computes in {dtypes}, which no target has"


def why_it_stays(body: Body) -> str:
    """The reason, as a clause that can follow a name; "" where there is none."""
    sorts = [sort_of_stay(node, ()) for node in body.nodes]
    sort = next((sort for sort in REASONS if sort in sorts), "")
    others = sorted({spec.dtype for node in body.nodes for spec in node.outputs if spec.dtype in CARRIED_AS})
    if sort == "bits" and others:
        return _OTHER.format(dtypes=" and ".join(others))
    if not sort:
        return ""
    node = body.nodes[sorts.index(sort)]
    return REASONS[sort].format(word=word_of_target(node.target), why=str(node.kwargs.get("why", "")).rstrip("."))


def sort_of_stay(node: Node, reads: tuple[TensorSpec, ...]) -> str:
    """A key of `REASONS`, or "". `reads` are the specs of what the node reads."""
    if node.target == PART:
        return "code"
    dtypes = {spec.dtype for spec in (*node.outputs, *reads)}
    if dtypes & COMPLEX.keys():
        return "complex"
    if is_random(node):
        return "random"
    if node.target == "aten.view.dtype" or dtypes & CARRIED_AS.keys():
        return "bits"
    if node.target.startswith("loops."):
        return "loop"
    if word_of_target(node.target) in SIZED:
        return "size"
    return "recurrent" if word_of_target(node.target) in RECURRENT else ""


def is_random(node: Node) -> bool:
    """Whether it draws random numbers: then it has the seed with which it does."""
    generator = node.kwargs.get("generator")
    return isinstance(generator, dict) and "seed" in generator


def in_own_dtype(node: Node, reads: tuple[TensorSpec, ...]) -> bool:
    """Whether a node has no counterpart in another floating point dtype: it computes in its own wherever the rest is wider."""
    return sort_of_stay(node, reads) in OWN_DTYPE


def word_of_target(target: str) -> str:
    """"add" for aten.add.Tensor."""
    return target.split(".")[1] if "." in target else target
