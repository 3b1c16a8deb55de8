"""An output projection with everything that it may have, and what counts its work."""

from collections import defaultdict

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NUM_TOKENS, WIDTH, VOCABULARY = 23, 5, 300
TILES = [1, 3, NUM_TOKENS, 1000]
VARIANTS = [
    {"scale": 1.0, "softcap": None},
    {"scale": 0.3, "softcap": None},
    {"scale": 1.0, "softcap": 2.0},
    {"scale": 0.7, "softcap": 3.0},
]


class Head:
    """Hidden states, a projection with or without bias, and targets."""

    def __init__(
        self,
        *,
        trained: tuple[str, ...],
        dtype: torch.dtype = torch.float64,
        has_bias: bool = False,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.hidden, self.weight = normal(NUM_TOKENS, WIDTH), normal(VOCABULARY, WIDTH)
        self.bias = normal(VOCABULARY) if has_bias else None
        self.targets = torch.randint(VOCABULARY, (NUM_TOKENS,), generator=generator)
        self.trained, self.scale, self.softcap = trained, scale, softcap
        for name in trained:
            getattr(self, name).requires_grad_()

    def to(self, dtype: torch.dtype) -> "Head":
        """The same numbers in another dtype."""
        other = Head(trained=(), scale=self.scale, softcap=self.softcap)
        for name in ("hidden", "weight", "bias"):
            values = getattr(self, name)
            setattr(other, name, None if values is None else values.detach().to(dtype))
        other.targets, other.trained = self.targets, self.trained
        for name in self.trained:
            getattr(other, name).requires_grad_()
        return other

    def plain_logps(self) -> Tensor:
        """From all logits at once, by autograd."""
        logits = self.hidden @ self.weight.T
        logits = self.scale * (logits if self.bias is None else logits + self.bias)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return torch.log_softmax(logits, dim=1)[range(NUM_TOKENS), self.targets]


def gradients(logps: Tensor, head: Head) -> tuple[Tensor, ...]:
    """Of a sum in which every token has its own factor."""
    factors = torch.linspace(-1, 2, NUM_TOKENS, dtype=logps.dtype)
    inputs = [getattr(head, name) for name in head.trained]
    return torch.autograd.grad((factors * logps).sum(), inputs, retain_graph=True)


def assert_all_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], bound: float) -> None:
    """Each within the bound, relative to its own norm."""
    for one, other in zip(ours, theirs, strict=True):
        assert one.isfinite().all()
        assert (one.double() - other.double()).norm() <= bound * other.double().norm()


class Counter(TorchDispatchMode):
    """Counts products of matrices and the rows of their results, by the kind of product.

    Also remembers how large the largest result of all operations was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_products = 0
        self.num_rows: dict[str, int] = defaultdict(int)
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in {"mm", "addmm", "addmm_", "bmm", "baddbmm"}:
            self.num_products += 1
            self.num_rows[name] += result.shape[-2]
        if isinstance(result, Tensor):
            self.num_elements = max(self.num_elements, result.numel())
        return result
