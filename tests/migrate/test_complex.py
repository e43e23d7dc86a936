"""Models with complex numbers move completely: rotary embeddings, spectrograms, Fourier filters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tapml.carving.carve import carve
from tapml.carving.folder import RunFolder
from tapml.migrate.migrate import migrate
from tapml.source.load import load


class Complex(torch.nn.Module):
    """A signal's spectrogram, rotated by positions and filtered by frequencies."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(16.0), 10000.0 ** (-torch.arange(0, 8, 2) / 8))
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))
        self.register_buffer("window", torch.hann_window(14))
        self.filter = torch.nn.Parameter(torch.randn(5, 8, dtype=torch.complex64))

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        power = torch.stft(signal, 14, 7, window=self.window, return_complex=True).abs().transpose(1, 2)
        turned = torch.view_as_complex(power.reshape(2, 9, 4, 2)) * self.freqs_cis[2:11]
        rotated = torch.view_as_real(turned).flatten(2)
        return torch.fft.irfft(torch.fft.rfft(rotated, dim=1) * self.filter, n=9, dim=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("complex") / "run"
    carve(load(Complex().eval(), example_inputs=(torch.randn(2, 56),)), [], folder)
    return folder


@pytest.mark.parametrize("target", ["opencl", "vulkan"])
def test_every_operator_moves_and_the_outputs_agree(run: Path, target: str) -> None:
    result = migrate(RunFolder.open(run), target)
    assert result.passed and not result.kept_on_source and result.end_to_end.passed, result.kept_on_source
