"""litellm-forwarder: watches LiteLLM proxies from outside and delivers what it sees, durably."""
