"""What vendors' datasheets state of their cards: an assumption where nothing was measured."""

from __future__ import annotations

import re
from typing import NamedTuple


class Card(NamedTuple):
    """A card by name. ``fp16_tflops`` is dense, as matrix units give it where there are any.

    ``source`` is the vendor's document by its title. The figures were written down by hand; they
    serve where nothing was measured, and whoever uses them says so.
    """

    name: str
    memory_gib: int
    bandwidth_gbps: float
    fp16_tflops: float
    source: str


_AMPERE = "NVIDIA Ampere GA102 GPU architecture whitepaper"
_ADA = "NVIDIA Ada GPU architecture whitepaper"

CARDS = (
    Card("H200", 141, 4800, 989, "NVIDIA H200 Tensor Core GPU datasheet"),
    Card("H100 80GB HBM3", 80, 3350, 989, "NVIDIA H100 Tensor Core GPU datasheet"),
    Card("H100 PCIe", 80, 2000, 756, "NVIDIA H100 Tensor Core GPU datasheet"),
    Card("A100 SXM4 80GB", 80, 2039, 312, "NVIDIA A100 Tensor Core GPU datasheet"),
    Card("A100 PCIe 80GB", 80, 1935, 312, "NVIDIA A100 Tensor Core GPU datasheet"),
    Card("A100 PCIe 40GB", 40, 1555, 312, "NVIDIA A100 Tensor Core GPU datasheet"),
    Card("L40S", 48, 864, 362, "NVIDIA L40S datasheet"),
    Card("L40", 48, 864, 181, "NVIDIA L40 datasheet"),
    Card("L4", 24, 300, 121, "NVIDIA L4 datasheet"),
    Card("A40", 48, 696, 150, "NVIDIA A40 datasheet"),
    Card("A30", 24, 933, 165, "NVIDIA A30 datasheet"),
    Card("A10", 24, 600, 125, "NVIDIA A10 datasheet"),
    Card("T4", 16, 320, 65, "NVIDIA T4 datasheet"),
    Card("V100 SXM2 32GB", 32, 900, 125, "NVIDIA V100 Tensor Core GPU datasheet"),
    Card("V100 PCIe 16GB", 16, 900, 112, "NVIDIA V100 Tensor Core GPU datasheet"),
    Card("P100 PCIe 16GB", 16, 732, 18.7, "NVIDIA Tesla P100 PCIe datasheet"),
    Card("RTX 6000 Ada", 48, 960, 364, "NVIDIA RTX 6000 Ada datasheet"),
    Card("RTX A6000", 48, 768, 155, "NVIDIA RTX A6000 datasheet"),
    Card("RTX A5000", 24, 768, 111, "NVIDIA RTX A5000 datasheet"),
    Card("RTX A4000", 16, 448, 76.7, "NVIDIA RTX A4000 datasheet"),
    Card("RTX 5090", 32, 1792, 210, "NVIDIA RTX Blackwell GPU architecture whitepaper"),
    Card("RTX 4090", 24, 1008, 165, _ADA),
    Card("RTX 4080", 16, 717, 97.5, _ADA),
    Card("RTX 4070 Ti", 12, 504, 80.2, _ADA),
    Card("RTX 3090 Ti", 24, 1008, 80, _ADA),
    Card("RTX 3090", 24, 936, 71.2, _AMPERE),
    Card("RTX 3080", 10, 760, 59.5, _AMPERE),
    Card("RTX 3070", 8, 448, 40.6, _AMPERE),
    Card("RTX 3060 Ti", 8, 448, 32.4, "NVIDIA, GeForce RTX 3060 family: specifications"),
    Card("RTX 3060", 12, 360, 25.5, "NVIDIA, GeForce RTX 3060 family: specifications"),
    Card("RTX 2080 Ti", 11, 616, 53.8, "NVIDIA Turing GPU architecture whitepaper"),
    Card("Instinct MI300X", 192, 5300, 1307, "AMD, Instinct MI300X: specifications"),
    Card("Instinct MI210", 64, 1638, 181, "AMD, Instinct MI210: specifications"),
    Card("Instinct MI100", 32, 1229, 184.6, "AMD, Instinct MI100: specifications"),
    Card("Radeon PRO W7900", 48, 864, 122.6, "AMD, Radeon PRO W7900: specifications"),
    Card("Radeon RX 7900 XTX", 24, 960, 123, "AMD, Radeon RX 7900 XTX: specifications"),
    Card("Radeon RX 7900 XT", 20, 800, 103, "AMD, Radeon RX 7900 XT: specifications"),
    Card("Radeon RX 7800 XT", 16, 624, 74.6, "AMD, Radeon RX 7800 XT: specifications"),
    Card("Radeon RX 7600", 8, 288, 43.5, "AMD, Radeon RX 7600: specifications"),
    Card("Radeon RX 6900 XT", 16, 512, 46.1, "AMD, Radeon RX 6900 XT: specifications"),
    Card("Radeon RX 6800 XT", 16, 512, 41.5, "AMD, Radeon RX 6800 XT: specifications"),
    Card("Arc A770", 16, 560, 131, "Intel, Arc A770 Graphics: specifications"),
    Card("Arc A750", 8, 512, 114.5, "Intel, Arc A750 Graphics: specifications"),
    Card("Arc B580", 12, 456, 116.5, "Intel, Arc B580 Graphics: specifications"),
)
"""Bandwidth in GB/s (10**9 bytes); memory as sold; a compute figure with sparsity is halved."""

_WORDS = re.compile(r"[a-z]+|\d+")
_NOT_IN_NAMES = frozenset(
    {"gb", "geforce", "nvidia", "tesla", "amd", "intel", "r", "tm", "graphics"}
)


def card_of(name: str, memory_bytes: int | None) -> Card | None:
    """The card that a device's name means; where several do, the one with the most like memory.

    All words of the card's name must be in the device's, and those that make another card of it
    ("Ti", "Super", "Laptop") must not be there unless the card's name has them.
    """
    words = _words(name)
    fitting = [
        card
        for card in CARDS
        if _words(card.name) <= words and not (words - _words(card.name)) & _OTHERS
    ]
    if not fitting:
        return None
    longest = max(len(_words(card.name)) for card in fitting)
    fitting = [card for card in fitting if len(_words(card.name)) == longest]
    if memory_bytes is None:
        return fitting[0]
    return min(fitting, key=lambda card: abs(card.memory_gib - memory_bytes / 2**30))


_OTHERS = frozenset(
    {"ti", "super", "laptop", "mobile", "max", "xt", "xtx", "gre", "ada", "pro", "d"}
)


def _words(name: str) -> frozenset[str]:
    return frozenset(_WORDS.findall(name.lower())) - _NOT_IN_NAMES
