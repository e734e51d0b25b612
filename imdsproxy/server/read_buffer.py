"""The buffer into which every connection is read, in small pieces."""

from __future__ import annotations

LONGEST_READ = 16_384
"""The maximum bytes of one read, so that one client can neither block the loop nor fill the memory."""

BUFFER = memoryview(bytearray(LONGEST_READ))
"""What the current read brought. All connections share it, because both event loops fill it and pass it on at once."""
