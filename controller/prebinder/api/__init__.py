"""The controller over HTTP: webhooks in, build requests and event streams out. Routes: docs/controller-api.md."""
