"""What jobs import or compile at their first use, so that the server of ``jobs_in_processes`` has it before it forks.

It holds no threads and no state of OpenVINO's runtime, which a forked process could not use.
"""

import contextlib
import importlib

from flowers.reports.page import templates

for name in (
    "accelerate",
    "jobs.train",
    "numpy.ctypeslib",
    "numpy.ma",
    "openvino.frontend.pytorch.ts_decoder",
    "rich._emoji_codes",
    "timm",
    "torch.utils.serialization.config",
):
    with contextlib.suppress(ImportError):  # not everything is installed everywhere
        importlib.import_module(name)
for name in ("predictions.html", "report.html"):
    templates().get_template(name)
