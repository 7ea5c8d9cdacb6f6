"""What the adapters for agent frameworks share: settings, engines of a process, and a reply in OpenAI's form."""
