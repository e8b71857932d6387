"""Recipes are plain records: importing them loads no decoder and little of raykd."""

import json
import subprocess
import sys

DECODERS = {"PIL", "simplejpeg", "pyarrow.parquet", "torchvision", "raykd.data.dataset"}
FILES = 120  # no more of raykd's are behind the recipes


def test_recipes_load_no_decoder_and_few_files():
    script = "import json, sys, raykd.recipes; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    names = set(json.loads(done.stdout))
    assert not DECODERS & names
    assert len([name for name in names if name.split(".")[0] == "raykd"]) <= FILES
