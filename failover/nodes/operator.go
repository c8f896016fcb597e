package nodes

import (
	"context"

	"ripstop/fabric/admin"
	"ripstop/failover"
)

// AdminNodes checks every node, bounded by ctx, and returns them as an operator
// sees them.
func (r *Runner) AdminNodes(ctx context.Context) []admin.Node {
	r.Refresh(ctx)
	view := r.View()
	list := make([]admin.Node, len(view))
	for i, n := range view {
		rep := n.Report
		list[i] = admin.Node{
			Name: n.Name, Region: rep.Region, Role: string(rep.Role), State: string(n.State), Health: string(n.Health), Reasons: n.Reasons,
			Leader: n.Leader, Leads: rep.Leads, Draining: n.Draining, Ready: rep.Ready && n.State == failover.Up, Gate: rep.Gate,
			Software: rep.Software, Wire: rep.Wire, ServerID: rep.ServerID, Incarnation: rep.Incarnation,
			Started: rep.Started, Since: n.Since, LastSeen: n.LastSeen, Latency: n.Mean.Seconds(), ClockSkew: n.Skew.Seconds(),
			Clients: rep.Clients, Instances: rep.Instances, Pending: rep.Pending,
		}
	}
	return list
}
