"""Takes pushes over HTTP and answers once they are durable (contract.md sections 3 and 4)."""
