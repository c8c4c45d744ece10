"""A GPU's driver is started before its process loses the right to open sockets."""

import pytest

from knowmine.client.vault.gpu import start_driver


class Driver:
    """What it is asked, in order; `broken` is the first call that fails."""

    def __init__(self, broken=""):
        self.broken, self.calls = broken, []

    def __getattr__(self, name):
        def call(*given):
            self.calls.append(name)
            if name == "cuDeviceGet":
                self.number = given[1]
            return int(name == self.broken)

        return call


@pytest.mark.parametrize(("device", "number"), [("auto", 0), ("cuda", 0), ("cuda:3", 3), ("x", 0)])
def test_the_device_that_was_asked_for_gets_its_context(device, number):
    """Auto means the first; what is no device is told where it is picked."""
    driver = Driver()
    start_driver(device, load=lambda name: driver)
    assert driver.calls == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    assert driver.number == number


@pytest.mark.parametrize(
    ("broken", "calls"), [("cuInit", ["cuInit"]), ("cuDeviceGet", ["cuInit", "cuDeviceGet"])]
)
def test_a_driver_that_fails_is_left_alone(broken, calls):
    """A card that is not there, a driver without a card."""
    driver = Driver(broken)
    start_driver("cuda:7", load=lambda name: driver)
    assert driver.calls == calls


def test_a_cpu_needs_no_driver():
    """None is loaded."""

    def refuse(name):
        raise AssertionError(name)

    start_driver("cpu", load=refuse)


def test_a_machine_without_a_driver_goes_on():
    """As most have none."""

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    start_driver("auto", load=missing)
