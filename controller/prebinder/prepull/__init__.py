"""Images that wait on the nodes for their click: which image goes onto which node (pure), and the pods that pull."""
