"""An emulation of Azure's Instance Metadata Service, for tests, for the demo and for machines outside Azure."""

from imdsproxy.emulator.emulator import Arrival, Emulator
from imdsproxy.emulator.faults import Fault
from imdsproxy.emulator.server import EmulatorServer, run_in_thread

__all__ = ["Arrival", "Emulator", "EmulatorServer", "Fault", "run_in_thread"]
