"""The authors' released code, audited: every known difference from the paper is a switch, and each switch has its effect measured.

Chapter "An audit of the released code" shows it. Kinds of cells:

- ``gradient``: the meta-gradient under many settings of the switches, against the exact one; a row for each setting;
- ``training``: train with one setting of the switches, then adapt to new functions by three rules; a row for each function, rule
  and step;
- ``standardisation``: the same with a standardisation that saw the test functions, and with one that did not;
- ``functions``: how alike the meta-gradients of the slides' and of the released functions are; a row for each formula;
- ``memory``: bytes that stay alive, and time, when the stored solution keeps its graph; a row for each way of working.

Nothing was tuned. Test functions come from a generator of their own that no choice in this project was made on.
"""

from . import claims, facts, figures, findings, settings, tables
from .run import live

__all__ = ["claims", "facts", "figures", "findings", "live", "settings", "tables"]
