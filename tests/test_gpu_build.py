"""The kernels built for cards that are not here: registers, stack, width of loads."""

import re
import subprocess
import tempfile

import pytest
from apart import apart


def builds() -> list[tuple[str, dict, int, int]]:
    """Kernel, constants, warps, and how often it moves a program's tile of large tensors."""
    summing = {"PROGRAMS": 512}
    return [("pool_kernel", {"seed_ptr": None, **summing}, 4, 4), ("pool_kernel", summing, 4, 4),
            ("statistics_kernel", summing, 8, 0), ("add_kernel", summing, 8, 0),
            ("forward_kernel", {}, 4, 1), ("forward_kernel", {"mask_ptr": None}, 4, 1),
            ("sums_kernel", summing, 4, 2), ("backward_kernel", {}, 4, 5),
            ("evaluation_kernel", {}, 4, 4), ("columns_backward_kernel", {}, 8, 0),
            ("columns_forward_kernel", {}, 8, 0),
            ("columns_forward_kernel", {"random_ptr": None}, 8, 0)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", [80, 90])
@apart(interpret=False)
def test_kernels_build_without_spills_and_load_16_bytes_at_once(architecture, dtype):
    from fast.gpu import kernels

    large = {f"{name}_ptr": f"*{dtype}" for name in ("x", "pooled", "y", "g", "dx", "mask")}
    types = {**large, "code_ptr": "*u8", "seed_ptr": "*i64", "factor": "fp32", "eps": "fp32"}
    for name, constants, warps, tiles in builds():
        found = build(getattr(kernels, name), types, constants, architecture, warps)
        # 65,536 registers are four programs of 128 threads, and three of the one that draws a mask.
        most = 168 if name == "pool_kernel" and "seed_ptr" not in constants else 128
        assert found["registers"] <= most and found["stack"] == 0, (name, constants, found)
        values = kernels.WINDOWS.value * kernels.CHANNELS.value // (32 * warps)  # of a thread
        wide = tiles * values * (4 if dtype == "fp32" else 2) // 16
        assert found["wide loads"] >= wide, (name, found)


@pytest.mark.parametrize("architecture", [80, 90])
@apart(interpret=False)
def test_a_batch_is_gathered_by_words_and_stored_16_bytes_at_once(architecture):
    from fast.gpu import kernels

    types = {"images_ptr": "*u8", "index_ptr": "*i64"}
    found = build(kernels.batch_kernel, types, {}, architecture, 8)
    assert found["registers"] <= 32 and found["stack"] == 0, found  # all 2048 threads fit
    assert found["wide stores"] == 1 and found["words"] == 1, found


def build(kernel, types: dict, constants: dict, architecture: int, warps: int) -> dict[str, int]:
    """Compile a kernel for an architecture, for tensors as PyTorch gives them and C = 64."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else
                 types.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in names}
    divisible = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names)
                 if name not in constants and (name.endswith("_ptr") or name in ("C", "F", "room"))}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    built = triton.compile(source, GPUTarget("cuda", architecture, 32), {"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        dump = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    return {"registers": int(re.search(r"REG:(\d+)", usage)[1]),
            "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
            **{what: len(re.findall(pattern, built.asm["ptx"])) for what, pattern in (
                ("wide loads", r"ld\.global[.\w]*\.v4\.b32"), ("words", r"ld\.global\.b32"),
                ("wide stores", r"st\.global[.\w]*\.v4\.b32"))}}
