"""What users notice while a bad release is taken out of traffic: by hand, by a scale-up, and on each of our rungs.

    .venv/bin/python -m bench.switch --runs 20 --switches 100 --json FILE

The same small stack, the same open-loop load, one way after the other; every request is written down by a process that
knows nothing of what is measured, and the figures are computed from that.
"""
