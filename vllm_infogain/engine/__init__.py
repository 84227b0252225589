"""The engine core's process (scheduler) and its workers (runner). A step is an engine step here.

May import `request`, `grammar`, `sampling`, `model_executors` and `compat`; never `serving`.
"""
