//! The web: a gate that owns every client's socket, tiny_http behind it, routes, auth, the API and the widget.
