"""The engine core's process (scheduler) and its workers (runner). May import `request`, `grammar` and `sampling`; never
`serving`.
"""
