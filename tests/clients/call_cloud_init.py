"""Run cloud-init's requests to IMDS, as during the boot of a machine, and print the result as JSON.

`{"what": "all"}`, `"network"` or `"reprovision"`, with cloud-init's own number of retries or `"retries"`. Runs under
Debian's Python, with cloud-init's code on its path and nothing of it installed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

from cloudinit import helpers, version
from cloudinit.sources.DataSourceAzure import DataSourceAzure, MetadataType, get_metadata_from_imds

from tests.clients import guard


def main(order: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source = DataSourceAzure({}, None, helpers.Paths({"cloud_dir": folder, "run_dir": folder}))
    retries = order.get("retries", 10)
    began = time.monotonic()
    match order["what"]:
        case "all":
            got = source.get_imds_data_with_api_fallback(retries=retries)
        case "network":
            got = source.get_imds_data_with_api_fallback(retries=retries, md_type=MetadataType.NETWORK)
        case _:
            got = get_metadata_from_imds(retries, md_type=MetadataType.REPROVISION_DATA)
    return {"got": got, "seconds": time.monotonic() - began, "version": version.version_string()}


if __name__ == "__main__":
    guard.only_in_a_namespace()
    json.dump(main(json.loads(sys.argv[1])), sys.stdout)
