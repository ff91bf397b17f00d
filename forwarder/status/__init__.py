"""What the agent shows of itself and of the proxies: the view, its history, and the HTTP server that serves both."""
