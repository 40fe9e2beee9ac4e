"""Compares vLLM's INT8 matrix product with exact sums and with sums that saturate in 16 bits.

Run it with the Python of the `serve` environment, on the processor in question:

    .environments/serve/bin/python benchmarks/int8_sums.py
"""

import torch
from vllm import _custom_ops as ops

TOKENS, OUTPUTS, INPUTS = 16, 256, 576  # inputs as wide as SmolLM2-135M's


def product(
    quantised: torch.Tensor, steps: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Computes the kernel's product of INT8 activations and weights.

    Args:
        quantised: activations [tokens, inputs].
        steps: scales of the activations [tokens, 1].
        weight: weights [outputs, inputs].
        scale: scales of the weights [outputs, 1].

    Returns:
        The product [tokens, outputs].
    """
    handler = ops.create_onednn_scaled_mm(weight.t(), scale, torch.float32, True, False, 32)
    found = torch.empty(len(quantised), len(weight))
    ops.onednn_scaled_mm(handler, quantised, found, steps, None, None, None)
    return found.double()


def saturating(quantised: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Computes the sums as AVX2's vpmaddubsw makes them.

    It shifts activations to unsigned values and keeps each pair of products in 16 bits.
    """
    products = (quantised.int() + 128)[:, None] * weight.int()
    pairs = products.unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1)
    return (pairs.sum(-1) - 128 * weight.int().sum(-1)).double()


def errors(x: torch.Tensor, w: torch.Tensor) -> tuple[float, float, float]:
    """Computes three relative errors (root mean square).

    Args:
        x: activations [tokens, inputs], quantised per token.
        w: weights [outputs, inputs], quantised per output.

    Returns:
        The errors of rounding to INT8, of the kernel against exact sums, and of the kernel against
        saturating sums.
    """
    scale = w.abs().amax(1, keepdim=True) / 127
    weight = (w / scale).round().to(torch.int8)
    quantised, steps, _ = ops.onednn_scaled_int8_quant(x, None, None, True)
    found, unit = product(quantised, steps, weight, scale), steps.double() * scale.double().t()
    exact = quantised.double() @ weight.double().t() * unit
    pairs = (
        (exact, x.double() @ w.double().t()),
        (found, exact),
        (found, saturating(quantised, weight) * unit),
    )
    return tuple(float((a - b).norm() / b.norm()) for a, b in pairs)


def main() -> None:
    """Prints the errors for normally distributed values and for positive values."""
    torch.manual_seed(0)
    for name, draw in {"normal": torch.randn, "uniform in 0..1": torch.rand}.items():
        rounding, exact, saturated = errors(draw(TOKENS, INPUTS), draw(OUTPUTS, INPUTS))
        print(
            f"{name}: rounding {rounding:.1e}; kernel against exact {exact:.1e}, against "
            f"saturating {saturated:.1e}"
        )


if __name__ == "__main__":
    main()
