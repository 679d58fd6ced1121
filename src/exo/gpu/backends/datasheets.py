"""What vendors' datasheets state of their cards: an assumption where nothing was measured."""

from __future__ import annotations

import re
from typing import NamedTuple


class Card(NamedTuple):
    """A card by name. ``fp16_tflops`` is dense, as matrix units give it where there are any."""

    name: str
    memory_gib: int
    bandwidth_gbps: float
    fp16_tflops: float
    source: str


_N = "https://www.nvidia.com/content/dam/en-zz/Solutions"
_AMPERE = (
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
)
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/"
    "nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_AMD = "https://www.amd.com/en/products"
_INTEL = "https://www.intel.com/content/www/us/en/products/sku"

CARDS = (
    Card(
        "H200",
        141,
        4800,
        989,
        "https://nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200-datasheet-3002446",
    ),
    Card(
        "H100 80GB HBM3",
        80,
        3350,
        989,
        "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet",
    ),
    Card(
        "H100 PCIe",
        80,
        2000,
        756,
        "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet",
    ),
    Card(
        "A100 SXM4 80GB",
        80,
        2039,
        312,
        f"{_N}/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
    ),
    Card(
        "A100 PCIe 80GB",
        80,
        1935,
        312,
        f"{_N}/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
    ),
    Card("A100 PCIe 40GB", 40, 1555, 312, f"{_N}/Data-Center/a100/pdf/nvidia-a100-datasheet.pdf"),
    Card("L40S", 48, 864, 362, "https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413"),
    Card(
        "L40",
        48,
        864,
        181,
        f"{_N}/design-visualization/support-guide/NVIDIA-L40-Datasheet-January-2023.pdf",
    ),
    Card(
        "L4",
        24,
        300,
        121,
        "https://resources.nvidia.com/en-us-data-center-overview/l4-gpu-datasheet",
    ),
    Card(
        "A40",
        48,
        696,
        150,
        "https://images.nvidia.com/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf",
    ),
    Card("A30", 24, 933, 165, f"{_N}/data-center/products/a30-gpu/pdf/a30-datasheet.pdf"),
    Card("A10", 24, 600, 125, f"{_N}/Data-Center/a10/pdf/datasheet-new/nvidia-a10-datasheet.pdf"),
    Card("T4", 16, 320, 65, f"{_N}/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf"),
    Card(
        "V100 SXM2 32GB",
        32,
        900,
        125,
        "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf",
    ),
    Card(
        "V100 PCIe 16GB",
        16,
        900,
        112,
        "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf",
    ),
    Card(
        "P100 PCIe 16GB",
        16,
        732,
        18.7,
        "https://images.nvidia.com/content/tesla/pdf/nvidia-tesla-p100-PCIe-datasheet.pdf",
    ),
    Card(
        "RTX 6000 Ada",
        48,
        960,
        364,
        "https://resources.nvidia.com/en-us-design-viz-stories-ep/rtx-6000-ada-datasheet",
    ),
    Card(
        "RTX A6000",
        48,
        768,
        155,
        f"{_N}/design-visualization/quadro-product-literature/proviz-print-nvidia-rtx-a6000-datasheet-us-nvidia-1454980-r9-web.pdf",
    ),
    Card(
        "RTX A5000", 24, 768, 111, f"{_N}/design-visualization/rtx/nvidia-rtx-a5000-datasheet.pdf"
    ),
    Card("RTX A4000", 16, 448, 76.7, f"{_N}/gtcs21/rtx-a4000/nvidia-rtx-a4000-datasheet.pdf"),
    Card("RTX 5090", 32, 1792, 210, _BLACKWELL),
    Card("RTX 4090", 24, 1008, 165, _ADA),
    Card("RTX 4080", 16, 717, 97.5, _ADA),
    Card("RTX 4070 Ti", 12, 504, 80.2, _ADA),
    Card("RTX 3090 Ti", 24, 1008, 80, _ADA),
    Card("RTX 3090", 24, 936, 71.2, _AMPERE),
    Card("RTX 3080", 10, 760, 59.5, _AMPERE),
    Card("RTX 3070", 8, 448, 40.6, _AMPERE),
    Card(
        "RTX 3060 Ti",
        8,
        448,
        32.4,
        "https://www.nvidia.com/en-us/geforce/graphics-cards/30-series/rtx-3060-3060ti/",
    ),
    Card(
        "RTX 3060",
        12,
        360,
        25.5,
        "https://www.nvidia.com/en-us/geforce/graphics-cards/30-series/rtx-3060-3060ti/",
    ),
    Card(
        "RTX 2080 Ti",
        11,
        616,
        53.8,
        "https://images.nvidia.com/aem-dam/en-zz/Solutions/design-visualization/technologies/turing-architecture/NVIDIA-Turing-Architecture-Whitepaper.pdf",
    ),
    Card("Instinct MI300X", 192, 5300, 1307, f"{_AMD}/accelerators/instinct/mi300/mi300x.html"),
    Card("Instinct MI210", 64, 1638, 181, f"{_AMD}/accelerators/instinct/mi200/mi210.html"),
    Card("Instinct MI100", 32, 1229, 184.6, f"{_AMD}/accelerators/instinct/mi100.html"),
    Card("Radeon PRO W7900", 48, 864, 122.6, f"{_AMD}/graphics/workstations/radeon-pro/w7900.html"),
    Card(
        "Radeon RX 7900 XTX",
        24,
        960,
        123,
        f"{_AMD}/graphics/desktops/radeon/7000-series/amd-radeon-rx-7900xtx.html",
    ),
    Card(
        "Radeon RX 7900 XT",
        20,
        800,
        103,
        f"{_AMD}/graphics/desktops/radeon/7000-series/amd-radeon-rx-7900xt.html",
    ),
    Card(
        "Radeon RX 7800 XT",
        16,
        624,
        74.6,
        f"{_AMD}/graphics/desktops/radeon/7000-series/amd-radeon-rx-7800-xt.html",
    ),
    Card(
        "Radeon RX 7600",
        8,
        288,
        43.5,
        f"{_AMD}/graphics/desktops/radeon/7000-series/amd-radeon-rx-7600.html",
    ),
    Card(
        "Radeon RX 6900 XT",
        16,
        512,
        46.1,
        f"{_AMD}/graphics/desktops/radeon/6000-series/amd-radeon-rx-6900-xt.html",
    ),
    Card(
        "Radeon RX 6800 XT",
        16,
        512,
        41.5,
        f"{_AMD}/graphics/desktops/radeon/6000-series/amd-radeon-rx-6800-xt.html",
    ),
    Card(
        "Arc A770",
        16,
        560,
        131,
        f"{_INTEL}/229151/intel-arc-a770-graphics-16gb/specifications.html",
    ),
    Card("Arc A750", 8, 512, 114.5, f"{_INTEL}/227954/intel-arc-a750-graphics/specifications.html"),
    Card(
        "Arc B580", 12, 456, 116.5, f"{_INTEL}/241598/intel-arc-b580-graphics/specifications.html"
    ),
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
