"""`python -m amd_lightning.data +experiment=dolly`: the data as the models see it; see `show_data.py`."""

import runpy

runpy.run_module("amd_lightning.show_data", run_name="__main__")
