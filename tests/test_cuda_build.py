"""What a build with CUDA kernels must show without a GPU: it is whole, and tracing sees the device.

That the CPU operators work in it, the other tests show when they run in such a build.
"""

from __future__ import annotations

import pytest
import torch
from test_ops_refusals import ARGUMENTS, call
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from bgkd_megatron import ops
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.vocab_shard import VocabShard

pytestmark = pytest.mark.skipif(
    "cuda" not in ops.DEVICES,
    reason=f"built without CUDA kernels; torch is built for CUDA {torch.version.cuda}",
)


def test_kernels_were_compiled_by_the_cuda_of_torch() -> None:
    info = ops.build_info()
    assert torch.version.cuda is not None
    assert info["cuda"].split(".")[0] == torch.version.cuda.split(".")[0]
    assert info["cuda_architectures"]


def test_every_operator_has_a_kernel_for_every_device() -> None:
    for name in ARGUMENTS:
        for key in ("CPU", "CUDA", "Meta"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bgkd::{name}", key), (name, key)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_fake_tensors_stay_on_the_device(name: str) -> None:
    """Shapes and dtypes of the CPU, on the fake device."""
    operator = getattr(ops, name)
    arguments = [ARGUMENTS[name][argument.name] for argument in operator._schema.arguments]
    arguments = [value.clone() if isinstance(value, Tensor) else value for value in arguments]
    with FakeTensorMode() as mode:
        on_device = [
            mode.from_tensor(value).to("cuda") if isinstance(value, Tensor) else value
            for value in arguments
        ]
        fakes = tree_leaves(operator(*on_device))
    reals = tree_leaves(operator(*arguments))
    assert [fake is None for fake in fakes] == [real is None for real in reals]
    for fake, real in zip(fakes, reals, strict=True):
        if real is not None:
            assert fake.device.type == "cuda"
            assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


def test_a_loss_traces_on_fake_tensors() -> None:
    """Nothing asks the device for a value. Forward alone, as autograd's engine wants a GPU, and
    not in place, as that looks at addresses, which these tensors do not have."""
    objective = HybridObjective(ObjectiveConfig(), 100)
    with FakeTensorMode():
        student = torch.empty(6, 104, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        teacher = torch.empty(6, 104, dtype=torch.bfloat16, device="cuda")
        labels = torch.empty(6, dtype=torch.int64, device="cuda")
        shard = VocabShard.even(100, 104)
        losses, stats = hybrid_loss(student, teacher, labels, objective, shard=shard)
    assert losses.loss.requires_grad
    for tensor in (losses.loss, stats.forward_kl, stats.student_argmax):
        assert tensor is not None
        assert (tensor.device.type, tensor.shape) == ("cuda", (6,))


@pytest.mark.parametrize(
    "logits",
    [
        pytest.param(torch.zeros(1, 1).expand(2**31, 1), id="tokens"),
        # Never touched, so that it takes no memory.
        pytest.param(torch.empty(1, 2**30 + 1, dtype=torch.float16), id="columns"),
    ],
)
def test_refuses_sizes_that_the_kernels_cannot_count(logits: Tensor) -> None:
    with pytest.raises(ValueError, match="take at most 2147483647 tokens of 1073741824 columns"):
        call(
            "vocab_stats",
            "cuda",
            **{"student_logits": logits, "teacher_logits": None, "labels": None, "features": 0},
        )
