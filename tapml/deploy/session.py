"""Running a bundle on a device.

    with Session(bundle) as session:                            here; Session(bundle, "phone@http://…") elsewhere
        for token in session.generate([5, 9, 70], max_tokens=16, sampling=Sampling(temperature=0.7)): ...
        outputs = session.run({"input_ids": array})             of a model that chooses no tokens

The kernels are those of the bundle; nothing is compiled but by the device's own driver. A call is the uploads of its inputs, one
submission, and one read of its outputs.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from tapml.deploy.bundle import BundleFolder
from tapml.deploy.held import Held
from tapml.deploy.plan import Plan
from tapml.deploy.player import PLANNED, OnBatch, Player, Way
from tapml.deploy.sampling import GREEDY, Grammar, Sampler, Sampling
from tapml.devices.interface import Device, DeviceInfo
from tapml.devices.runner import ProgramRunner
from tapml.errors import DeviceError, PromptError, UnavailableError, UsageError
from tapml.remote.open import open_device
from tapml.runtime.buffers import WeightCache
from tapml.runtime.protocol import Generating, answered, generated
from tapml.tensors import HostArray


class Session:
    """See the module's docstring. Opening raises BundleError, UsageError for what is no device, and UnavailableError, also where
    the device does not take the bundle's kernels or weights."""

    def __init__(self, bundle: BundleFolder, device: str = "local") -> None:
        self.bundle = bundle
        self.held = Held()
        programs = bundle.programs
        self._device = open_device(bundle.choice, device)
        try:
            self._engine = ProgramRunner(self._device)
            self._weights = WeightCache(self._engine.pool)
            for name, program in programs.items():
                try:
                    self._engine.load(program)
                except DeviceError as error:
                    raise UnavailableError(f"{self.info.name} does not take the kernels of {name}: {error}") from error
            self._device.synchronize()
            self._player = self.player(bundle.plan)
            self._player.prepare()
            self._device.synchronize()
        except BaseException:
            self._device.close()
            raise

    @property
    def info(self) -> DeviceInfo:
        return self._device.info

    @property
    def device(self) -> Device:
        return self._device

    @property
    def stepper(self) -> Player:
        """What carries out the calls. After it was used, `generate` must not `reuse`."""
        return self._player

    @property
    def uploaded(self) -> int:
        """Bytes of weights on the device."""
        return self._weights.bytes

    @property
    def peak(self) -> int:
        """The most bytes of buffers that were on the device at once."""
        return self._engine.pool.peak

    def player(self, plan: Plan, way: Way = PLANNED, on_batch: OnBatch | None = None) -> Player:
        """Another one over the same weights and kernels: for a plan of the same bundle, and run in another way."""
        programs = self.bundle.programs
        return Player(
            self.bundle.model, programs, plan, self._engine, self._weight, self._device.synchronize, way, on_batch
        )

    def _weight(self, key: str, dtype: str) -> int:
        digest = self.bundle.digest_of_weight(key, dtype)
        return self._weights.get(digest, dtype, lambda: self.bundle.weight(key, dtype))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._device.close()

    def generate(
        self, prompt: Sequence[int], max_tokens: int = 128, sampling: Sampling = GREEDY, grammar: Grammar | None = None,
        reuse: bool = False,
    ) -> Generator[int, None, None]:  # fmt: skip
        """Tokens, a stop token included; greedy unless `sampling` says otherwise. With `reuse`, what the cache holds of the last
        prompt and answer is kept as far as this prompt begins alike. One answer at a time. Raises PromptError for a prompt that
        does not fit, UsageError for a model that chooses no tokens or a bias of a token that it does not have; WrongValue for
        logits that no token can be chosen from; DeviceError and UnavailableError from the device."""
        protocol = self.bundle.protocol
        if not isinstance(protocol, Generating):
            raise UsageError(f"{self.bundle.name} chooses no tokens: it is called with inputs.")
        if beyond := [token for token in prompt if not 0 <= token < protocol.vocabulary]:
            raise PromptError(f"The prompt has token {beyond[0]}; the model's go from 0 to {protocol.vocabulary - 1}.")
        sampler = Sampler(sampling, protocol.vocabulary, prompt, grammar)
        kept = self.held.shared(prompt, protocol, reuse)
        chosen = generated(self._player, prompt, protocol, max_tokens, sampler.choose, kept=kept)
        for token in self.held.watched(prompt, chosen):
            yield token
            if grammar is not None and grammar.done:
                return

    def run(self, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        """The outputs of a model that chooses no tokens, by key. Raises UsageError for inputs that it does not take."""
        protocol = self.bundle.protocol
        if isinstance(protocol, Generating):
            raise UsageError(f"{self.bundle.name} generates text: use generate.")
        for graph in self.bundle.model.graphs.values():
            for p in graph.inputs:
                if p.key not in inputs or tuple(inputs[p.key].shape) != p.spec.shape:
                    have = ", ".join(f"{key} {list(array.shape)}" for key, array in inputs.items())
                    raise UsageError(f"{self.bundle.name} takes {p.key} as {p.spec}; given: {have or 'nothing'}.")
        return answered(self._player, protocol.check(inputs, ()))

