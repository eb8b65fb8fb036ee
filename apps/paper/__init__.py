"""The paper's experiments: `python -m apps.paper FIGURE`."""
