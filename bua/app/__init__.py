"""The interactive page of ``bua app``, which shows in a browser what the detector and the tasks' models find in images.

``bua.app.models`` loads them, ``bua.app.results`` applies them to an image, ``bua.app.views`` shows the results as
HTML, and ``bua.app.page`` is the page. Only the last needs Gradio.
"""
