"""Every test runs offline: a name that would reach for the Hub fails at once, and no cache of the user's is read."""

import os
import tempfile

# Set before anything imports huggingface_hub, which reads them once; started processes inherit them.
_hub_cache = tempfile.TemporaryDirectory(prefix="rlhf-kit-tests-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _hub_cache.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
