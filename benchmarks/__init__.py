"""Meta-gradients of this package beside those of other libraries: CPU seconds, wall seconds, memory growth and error.

``python -m benchmarks`` measures, ``python -m benchmarks.report`` judges and draws. Neither is imported by ``amaml_core``.
"""
