"""The connections to Kie: how requests are sent, and which calls are repeated. No other room opens one."""
