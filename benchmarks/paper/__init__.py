"""The paper's tasks as lm-eval runs them, and what judges their answers: `README.md` beside this file."""
