"""The one call that costs money: what may leave, what came back, what is sent again."""
