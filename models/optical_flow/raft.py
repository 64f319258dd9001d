"""RAFT (Teed and Deng, ECCV 2020) of torchvision, with weights from a local file."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor
from torchvision.models.optical_flow import raft_large, raft_small

from ..interface import OpticalFlowEstimator
from .config import RaftConfig
from .sizes import estimate_resized

_BUILDERS = {"small": raft_small, "large": raft_large}


class Raft(OpticalFlowEstimator):
    """Pretrained, not trained here. Raises ValueError in one line where the weight file is missing or does not fit."""

    needs = None

    def __init__(self, config: RaftConfig) -> None:
        super().__init__()
        self.updates = config.updates
        self.network = _BUILDERS[config.size](weights=None, progress=False)
        state = read_weights(Path(config.weights))
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{config.weights} does not fit RAFT {config.size}: {reason}") from None
        self.requires_grad_(requires_grad=False)
        self.eval()

    @torch.no_grad()
    def estimate(self, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        if not len(frames_a):
            return frames_a.new_zeros(0, 2, *frames_a.shape[-2:])
        # 128: the last of its four cost volumes must have a side of two features of stride 8.
        return estimate_resized(self._estimate, frames_a, frames_b, multiple=8, least=128)

    def _estimate(self, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        return self.network(2 * frames_a - 1, 2 * frames_b - 1, num_flow_updates=self.updates)[-1].float()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt or .pth file; nothing in it is executed.

    Raises ValueError in one line where the file is missing or holds anything else.
    """
    if not path.is_file():
        raise ValueError(f"no weight file {path}: save the state of torchvision's raft_small or raft_large there")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # not needed by anything else in models

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, ModuleNotFoundError) as error:
        raise ValueError(f"{path} cannot be read as weights: {' '.join(str(error).split())[:160]}") from None
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise ValueError(f"{path} cannot be read as weights: {' '.join(str(error).split())[:160]}") from None
        raise
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is no state of a network: it must hold one tensor for each parameter")
    return state
