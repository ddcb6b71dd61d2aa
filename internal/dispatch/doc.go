// Package dispatch decides which deliveries may be attempted now, so that no
// receiver delays the callbacks of another. It does no I/O, starts no goroutine
// and has no clock.
//
// Report hosts with [Dispatcher.Due] as deliveries become due. Call
// [Dispatcher.Next] until it returns false, take as many deliveries of the host
// from the engine as it grants, and end each attempt with [Dispatcher.Done], or
// with [Dispatcher.Short] if the engine has no delivery for it. Call Next again
// after each of these, and at [Dispatcher.NextChange].
//
// # Rules
//
//   - There are two pools of slots. The fast pool serves hosts that have answered
//     within a day, in less than 100 ms on average. The slow pool serves all
//     others. An attempt that has been in the fast pool for half a second goes on
//     in the slow pool, and until it ends its host is not fast.
//   - A host has a window of attempts at once: 2 at first, one more with each
//     answer, half with each failure.
//   - The hosts of one registrable domain, IPv4 /24 or IPv6 /48 are one
//     participant in each pool. With n participants in a pool, none has more than
//     1/(n+1) of it.
//   - The participant with the fewest attempts in flight is next, and within it
//     the host with the fewest. Between equals, those that had nothing due come
//     first, the newest before the others, and then those that were served longest
//     ago; a host that failed last comes after all others. Every eighth grant goes
//     to the participant that has waited longest.
//   - If there is a rate, the attempts to a host start one by one, an interval apart.
//     A host that waits for its next one takes no slot.
//   - The second half of the slow pool fills slowly, so that it has room for a new
//     host whatever has come before.
//
// A host that the operator has named is a participant of its own and fast until
// it proves slow.
//
// # Why not simpler rules
//
// The tests simulate 200 callbacks a second to 50 healthy hosts, one a second to
// a host never called before, and a load beside them, for a minute. The p99 from
// result to answer is 24.9 ms without a load, 25.4 ms at most with these rules,
// and a new host waits 0.6 s at most. Simpler rules fail, even with what was
// known of all hosts before (TestSimplerRulesFail):
//
//   - First come, first served, with a limit per host: 8 hosts that hold their
//     connections take all slots, and no callback is answered within the minute.
//   - One host after the other: with the same load 60 % of the callbacks are not
//     answered, and the p99 of the others is 46 s.
//   - Least slot time: the same load makes the p99 20 s.
//   - Least slot time, and attempts go on in a slow pool after a second: a thousand
//     names of one domain that hold stop everything. With one host after the other
//     the p99 is 22 s.
//   - The same with a slow pool without a limit: 1,000 hosts that answer after
//     0.9 s and 1.5 s and 500 that drip make the p99 38 s.
//
// Each rule alone is needed too. Without one of them:
//
//   - The fast pool: 22 hosts that answer after 15 s make the p99 3.3 s.
//   - Participants by domain and network: a thousand names of one domain that hold
//     make the p99 19 s, and a new host waits 18 s.
//   - Shares: with the same load the p99 is 9 s, and a new host waits 18 s.
//   - Newest first: after a restart with nothing stored, 1,500 slow hosts make the
//     p99 8 s.
//   - The slow filling: with the same load the p99 is 372 ms; 2,000 domains that
//     drip make a new host wait 20 s.
//   - Going on in the slow pool: 300 domains that answered well and then hold make
//     the p99 19 s, instead of 34 ms.
//   - The longest waiting: a flood of new names starves hosts that came before.
//
// The window is not needed for the others' sake. It spares a receiver that does
// not cope.
//
// # Limits of the rules
//
// Hosts of one domain or network can delay each other: a thousand names of a
// hosting company that answer once and then hold delay the other names there.
// Someone with hundreds of registrable domains can delay callbacks for half a
// second each time all of them have answered well and then hold.
package dispatch
