"""Makes every Vulkan driver of this machine visible to a command, a browser's SwiftShader too.

``vulkan_drivers.py --list`` prints the manifests, one a line; ``vulkan_drivers.py COMMAND ...``
runs the command with all of them named. SwiftShader lies beside a browser's binary, where the
Vulkan loader does not look; so where it is found, ``VK_DRIVER_FILES`` and ``VK_ICD_FILENAMES``
(the name that older loaders read) list the loader's own folders as well, and hardware stays
visible. Without SwiftShader, or where the caller has set one of the two, the environment is left
as it is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The loader's own search path on Linux ("Driver Discovery on Linux" in its documentation).
LOADER_FOLDERS = (
    Path("/usr/local/etc/vulkan/icd.d"),
    Path("/usr/local/share/vulkan/icd.d"),
    Path("/etc/vulkan/icd.d"),
    Path("/usr/share/vulkan/icd.d"),
)
BROWSER_FOLDERS = (
    Path("/usr/lib/chromium"),
    Path("/usr/lib/chromium-browser"),
    Path("/usr/lib64/chromium-browser"),
    Path("/snap/chromium/current/usr/lib/chromium-browser"),
    Path("/opt/google/chrome"),
    Path("/opt/chromium.org/chromium"),
    Path("/opt/microsoft/msedge"),
)
VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
SWIFTSHADER = "vk_swiftshader_icd.json"


def loader_manifests() -> list[Path]:
    """The manifests that the Vulkan loader finds by itself."""
    return [path for folder in LOADER_FOLDERS for path in sorted(folder.glob("*.json"))]


def llvmpipe() -> Path | None:
    """The manifest of Mesa's software driver, or None where Mesa is absent."""
    found = [path for path in loader_manifests() if path.name.startswith("lvp_icd")]
    return found[0] if found else None


def swiftshader() -> Path | None:
    """The manifest of SwiftShader beside a browser's binary, or None where no browser has it."""
    found = [folder / SWIFTSHADER for folder in BROWSER_FOLDERS if (folder / SWIFTSHADER).exists()]
    return found[0] if found else None


def manifests() -> list[Path]:
    """Every driver manifest of this machine."""
    beside_browser = swiftshader()
    return loader_manifests() + ([beside_browser] if beside_browser else [])


def variables() -> dict[str, str]:
    """What the environment needs so that every driver is visible; empty where nothing is needed."""
    if swiftshader() is None or any(name in os.environ for name in VARIABLES):
        return {}
    return dict.fromkeys(VARIABLES, os.pathsep.join(str(path) for path in manifests()))


def main(arguments: list[str]) -> int:
    """List the manifests, or become the command; 2 for wrong usage."""
    if arguments == ["--list"]:
        print(*manifests(), sep="\n")
    elif arguments:
        os.environ.update(variables())
        os.execvp(arguments[0], arguments)  # replaces this process
    else:
        print("usage: vulkan_drivers.py --list | COMMAND [ARGUMENT ...]", file=sys.stderr)
    return 0 if arguments else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
