"""Work on the best device, and on all of them: three lines of exo.gpu."""

from exo import gpu


def cube(number: int) -> int:
    """The work: any function that its module can be asked for."""
    return number**3


if __name__ == "__main__":
    with gpu.lease(memory="1GiB") as device:
        print("leased", device.device_id)
    results = gpu.map(cube, range(10), memory="1GiB")
    print(results)
