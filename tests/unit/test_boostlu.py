import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import trainer.model.boostlu as module
from sharding.errors import UserError
from trainer.model.boostlu import BoostLUHead, boostlu


def plain_logits(head: BoostLUHead, features: torch.Tensor) -> torch.Tensor:
    """The published formula with stock operations: 1×1 convolution, max(x, αx), spatial mean."""
    cam = torch.nn.functional.conv2d(features, head.weight[:, :, None, None], head.bias)
    return torch.maximum(cam, head.alpha * cam).mean((2, 3))


def test_boostlu_by_hand() -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    assert boostlu(x, 5).tolist() == [-2.0, -0.5, 0.0, 2.5, 10.0]
    assert boostlu(x, 1).tolist() == x.tolist()


def test_head_by_hand() -> None:
    head = BoostLUHead(1, 1, alpha=5)
    with torch.no_grad():
        head.weight.fill_(2.0)
        head.bias.fill_(-1.0)
    features = torch.tensor([[[[0.0, 1.0], [0.5, 2.0]]]])  # CAM −1, 1, 0, 3 → boosted −1, 5, 0, 15 → mean 4.75
    assert head(features).item() == pytest.approx(4.75)
    assert head.cam(features).flatten().tolist() == [-1.0, 5.0, 0.0, 15.0]
    head.alpha = 1.0
    assert head(features).item() == pytest.approx(0.75)


@pytest.mark.parametrize("alpha", [0.99, 0.0, -1.0, float("nan"), float("inf")])
def test_alpha_below_one_is_refused(alpha: float) -> None:
    with pytest.raises(UserError, match="α ≥ 1"):
        BoostLUHead(2, 2, alpha)


@pytest.mark.parametrize("alpha", [1.0, 3.0])
@pytest.mark.parametrize("chunk", [1, 60, 1 << 24])
def test_gradcheck(alpha: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    head = BoostLUHead(4, 3, alpha).double()
    features = torch.randn(3, 4, 2, 3, dtype=torch.float64, requires_grad=True)

    def logits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(head, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(logits, (features, head.weight, head.bias))


@given(
    batch=st.integers(1, 5),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    alpha=st.sampled_from([1.0, 1.5, 5.0]),
    channels_last=st.booleans(),
    chunk=st.integers(1, 200),
)
def test_equals_stock_modules(
    batch: int, size: tuple[int, int], alpha: float, channels_last: bool, chunk: int
) -> None:
    torch.manual_seed(batch)
    head = BoostLUHead(6, 5, alpha)
    features = torch.randn(batch, 6, *size)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    seed = torch.randn(batch, 5)
    before, module.CHUNK_ELEMENTS = module.CHUNK_ELEMENTS, chunk
    try:
        got = head(ours)
        gradients = torch.autograd.grad((got * seed).sum(), [ours, head.weight, head.bias])
    finally:
        module.CHUNK_ELEMENTS = before
    want = plain_logits(head, theirs)
    expected = torch.autograd.grad((want * seed).sum(), [theirs, head.weight, head.bias])
    torch.testing.assert_close(got, want)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_logits_are_the_mean_of_the_cam() -> None:
    torch.manual_seed(0)
    head, features = BoostLUHead(8, 3, 5), torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(head.cam(features).mean((2, 3)), head(features))


def test_autocast_computes_in_half_and_returns_float32() -> None:
    torch.manual_seed(0)
    head, features = BoostLUHead(8, 3, 5), torch.randn(2, 8, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.float32
    torch.testing.assert_close(logits, plain_logits(head, features), rtol=0.05, atol=0.05)


def test_no_gradient_for_frozen_features() -> None:
    head, features = BoostLUHead(8, 3, 5), torch.randn(2, 8, 3, 3)
    head(features).sum().backward()
    assert head.weight.grad is not None
    assert features.grad is None


def test_saved_for_backward_is_one_byte_an_element() -> None:
    head = BoostLUHead(4, 50, 5)
    features = torch.randn(8, 4, 7, 7, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        head(features)
    own = {features.data_ptr(), head.weight.data_ptr()}
    assert sum(t.nbytes for t in saved if t.data_ptr() not in own) == 8 * 50 * 49


def test_alpha_is_not_a_weight() -> None:
    head = BoostLUHead(4, 2, 5)
    assert sorted(head.state_dict()) == ["bias", "weight"]


def test_compiles_with_the_same_result() -> None:
    torch.manual_seed(0)
    head, features = BoostLUHead(4, 3, 5), torch.randn(2, 4, 3, 3)
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(features), head(features))
