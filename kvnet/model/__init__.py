"""Models on this node: loading, caches, generation. Beside `codec` and `align`, all that imports torch."""

import os

# Must precede the first import of torch. Its worker threads otherwise spin while they wait, and on a
# machine whose cores are all busy (two nodes on a laptop) each small operation then takes 7 ms, not 0.2.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
