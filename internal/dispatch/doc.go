// Package dispatch decides which deliveries may be attempted now, so that no receiver
// delays the callbacks of another. It does no I/O, starts no goroutine and has no
// clock.
//
// Report hosts with [Dispatcher.Due] as deliveries become due. Call [Dispatcher.Next]
// until it returns false, and take as many deliveries of the host from the engine as it
// grants. End each attempt with [Dispatcher.Done], or with [Dispatcher.Short] if the
// engine has no delivery for it. Call Next again after each of these, and at
// [Dispatcher.NextChange].
//
// # Rules
//
//   - There are two pools of slots. The fast pool serves hosts that have answered
//     within a day, in less than 100 ms on average. The slow pool serves all others.
//     After half a second in the fast pool, an attempt moves to the slow pool. Until it
//     ends, its host is not fast.
//   - Each host has a window: how many attempts it may have in flight at once. It is 2
//     at first, grows by one with each answer, and is halved with each failure.
//   - The hosts of one registrable domain, IPv4 /24 or IPv6 /48 are one participant in
//     each pool. With n participants in a pool, none has more than 1/(n+1) of it.
//   - The participant with the fewest attempts in flight is next, and within it the
//     host with the fewest. Among equals, those that had nothing due come first, the
//     newest before the others. Then come those that were served longest ago. A host
//     whose last attempt failed comes after all others. Every eighth grant goes to the
//     participant that has waited longest.
//   - If there is a rate, the attempts to a host start one by one, an interval apart. A
//     host that waits for its next start takes no slot.
//   - The second half of the slow pool fills slowly, so that there is always room for a
//     new host.
//
// A host that the operator has named is a participant of its own, and is fast until it
// proves slow.
//
// # Why not simpler rules
//
// The tests simulate 200 callbacks a second to 50 healthy hosts, one a second to a host
// that was never called before, and an additional load, for a minute. The p99 from
// result to answer is 24.9 ms without a load and at most 25.4 ms with these rules, and
// a new host waits at most 0.6 s. Simpler rules fail, even if the stats of all hosts
// are known (TestSimplerRulesFail):
//
//   - First come, first served, with a limit per host: 8 hosts that hold their
//     connections take all slots, and no callback is answered within the minute.
//   - Round robin over the hosts: with the same load, 60 % of the callbacks are not
//     answered, and the p99 of the others is 46 s.
//   - Least slot time: with the same load, the p99 is 20 s.
//   - Least slot time, with a slow pool after a second: a thousand names of one domain
//     that hold their connections stop everything. With round robin, the p99 is 22 s.
//   - The same with an unlimited slow pool: 500 hosts that answer after 0.9 s, 500 after
//     1.5 s and 500 that drip make the p99 38 s.
//
// Each rule is also needed by itself. Without one of them:
//
//   - The fast pool: 22 hosts that answer after 15 s make the p99 3.3 s.
//   - Participants by domain and network: a thousand names of one domain that hold
//     their connections make the p99 19 s, and a new host waits 18 s.
//   - Shares: with the same load, the p99 is 9 s, and a new host waits 18 s.
//   - Newest first: after a restart with nothing stored, 1,500 slow hosts make the p99
//     8 s.
//   - The slow filling of the slow pool: with the same load, the p99 is 372 ms; with
//     2,000 domains that drip, a new host waits 20 s.
//   - The move to the slow pool: 300 domains that answered well and then hold their
//     connections make the p99 19 s, instead of 34 ms.
//   - The grant to the longest waiting: a flood of new names starves hosts that came
//     before.
//
// The window is not needed to protect other receivers. It spares a receiver that cannot
// keep up.
//
// # Limits of the rules
//
// Hosts of one domain or network can delay each other: a thousand names of a hosting
// company that answer once and then hold their connections delay the other names there.
// An attacker with hundreds of registrable domains can delay callbacks for half a
// second, each time that all of the domains have answered well and then hold their
// connections.
package dispatch
