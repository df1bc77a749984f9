"""PyTorch modules as models, and examples as PyTorch datasets; needs the extra `torch`."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"dbdask.torch needs PyTorch ({error}): pip install 'dbdask[torch]', on the client and on "
        "every worker"
    ) from error

from dbdask.torch.datasets import MinibatchDataset, dataset
from dbdask.torch.model import TorchModel

__all__ = ["MinibatchDataset", "TorchModel", "dataset"]
