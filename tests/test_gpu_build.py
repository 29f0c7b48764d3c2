"""The kernels built for cards that are not here: registers, stack, width of loads."""

import inspect
import os
import re
import subprocess
import tempfile

import pytest
from apart import apart


def builds() -> list[tuple[str, dict, int, int]]:
    """Kernel, constants, warps, and how often it moves a program's tile of large tensors."""
    summing = {"PROGRAMS": 512}
    return [("pool_kernel", {"mask_ptr": None, **summing}, 4, 4), ("pool_kernel", summing, 4, 4),
            ("statistics_kernel", summing, 8, 0), ("add_kernel", summing, 8, 0),
            ("forward_kernel", {}, 4, 1), ("forward_kernel", {"mask_ptr": None}, 4, 1),
            ("sums_kernel", summing, 4, 2), ("backward_kernel", {}, 4, 5),
            ("evaluation_kernel", {}, 4, 4), ("columns_backward_kernel", {}, 8, 0),
            ("columns_forward_kernel", {}, 8, 0),
            ("columns_forward_kernel", {"mask_ptr": None}, 8, 0)]


@pytest.mark.parametrize("architecture, dtype", [(80, "fp32"), (90, "bf16")])
@apart(interpret=False)
def test_kernels_build_without_spills_and_load_16_bytes_at_once(architecture, dtype):
    from fast.gpu import kernels

    assert os.environ["TRITON_DEFAULT_FP_FUSION"] == "1", "left to a version's default, sums may round otherwise"
    large = {f"{name}_ptr": f"*{dtype}" for name in ("x", "pooled", "y", "g", "dx", "mask")}
    types = {**large, "code_ptr": "*u8", "count_ptr": "*i64", "factor": "fp32", "eps": "fp32",
             "momentum": "fp32"}
    for name, constants, warps, tiles in builds():
        own = {"mask_ptr": "*u8"} if name == "pool_kernel" else {}
        found = build(getattr(kernels, name), types | own, constants, architecture, warps)
        # 65,536 registers are four programs of 128 threads, or three of the one that pools
        most = 168 if name == "pool_kernel" else 128
        assert found["registers"] <= most and found["stack"] == 0, (name, constants, found)
        values = kernels.WINDOWS * kernels.CHANNELS // (32 * warps)  # of a thread
        wide = tiles * values * (4 if dtype == "fp32" else 2) // 16
        assert found["wide loads"] >= wide, (name, found)


def build(kernel, types: dict, constants: dict, architecture: int, warps: int) -> dict[str, int]:
    """Compile a kernel for an architecture, for tensors as PyTorch gives them and C = 64."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    defaults = {name: parameter.default for name, parameter
                in inspect.signature(kernel.fn).parameters.items() if name.isupper()}
    names, constants = kernel.arg_names, {name: value for name, value in (defaults | constants).items()
                                          if value is not inspect.Parameter.empty}
    signature = {name: "constexpr" if name in constants else
                 types.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in names}
    divisible = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names)
                 if name not in constants and (name.endswith("_ptr") or name == "C")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    built = triton.compile(source, GPUTarget("cuda", architecture, 32), {"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        dump = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    return {"registers": int(re.search(r"REG:(\d+)", usage)[1]),
            "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
            "wide loads": len(re.findall(r"ld\.global[.\w]*\.v4\.b32", built.asm["ptx"]))}
