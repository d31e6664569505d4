// SPDX-License-Identifier: GPL-2.0
/*
 * Which process is at each end of a flow.
 *
 * Programs on a cgroup's sockets note, in the storage of each socket, the process that made, bound, connected or
 * accepted it. The first packet of a socket, or of a socket and a peer, puts a row into the map `ct_sides`, and so does
 * what changes a row later. User space takes rows out as it reads them. Two raw tracepoints, where there are any, note
 * who sends and receives in `ct_users`. Nothing here ever changes what happens to a packet or a call.
 *
 * Stable interfaces only: no kprobe, no BTF of the kernel, no relocation. One piece of layout is known, COOKIE; user
 * space proves it before it believes what comes of it. Compiled by script/bpf, loaded by sources/bpf.py; the structs
 * are those of wire/ownership.py.
 */
#include <linux/bpf.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))
#define inline inline __attribute__((always_inline))

/* linux/bpf.h, enum bpf_func_id */
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) =
	(void *)BPF_FUNC_map_update_elem;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static long (*bpf_probe_read_kernel)(void *to, __u32 size, const void *from) = (void *)BPF_FUNC_probe_read_kernel;
static __u64 (*bpf_ktime_get_boot_ns)(void) = (void *)BPF_FUNC_ktime_get_boot_ns;
static __u64 (*bpf_get_current_pid_tgid)(void) = (void *)BPF_FUNC_get_current_pid_tgid;
static __u64 (*bpf_get_current_uid_gid)(void) = (void *)BPF_FUNC_get_current_uid_gid;
static long (*bpf_get_current_comm)(void *to, __u32 size) = (void *)BPF_FUNC_get_current_comm;
static __u64 (*bpf_get_current_cgroup_id)(void) = (void *)BPF_FUNC_get_current_cgroup_id;
static long (*bpf_skb_load_bytes)(const void *skb, __u32 at, void *to, __u32 size) = (void *)BPF_FUNC_skb_load_bytes;
static __u64 (*bpf_get_socket_cookie)(void *ctx) = (void *)BPF_FUNC_get_socket_cookie;
static __u64 (*bpf_get_netns_cookie)(void *ctx) = (void *)BPF_FUNC_get_netns_cookie;
static struct bpf_sock *(*bpf_sk_fullsock)(struct bpf_sock *sk) = (void *)BPF_FUNC_sk_fullsock;
static void *(*bpf_sk_storage_get)(void *map, void *sk, void *value, __u64 flags) = (void *)BPF_FUNC_sk_storage_get;

#define AF_INET 2
#define SOCK_RAW 3
#define TCP 6
#define UDP 17
#define ICMP 1
#define ICMPV6 58

#define swap16(x) __builtin_bswap16(x)
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define net16(x) __builtin_bswap16(x)
#define net32(x) __builtin_bswap32(x)
#else
#define net16(x) (x)
#define net32(x) (x)
#endif

/* Offset of __sk_common.skc_cookie in struct sock, 64 bits, Linux 4.12 and later (include/net/sock.h). */
#define COOKIE 88

/* How a process came to be a socket's owner, the later the surer. */
enum how { NOBODY, CREATE, BIND, CONNECT, ACCEPT, SENDMSG, RECVMSG };

/*
 * Flags of a side; OUT and IN: a packet of that direction was seen; INHERITED: it has its owner from a listening socket;
 * RELEASED: `user` is who closed it last, another than its owner, and nobody was seen using it.
 */
enum { OUT = 1, IN = 2, INHERITED = 4, RELEASED = 8 };

struct actor {
	__u32 pid, tid, uid, gid;	/* pid is that of the process, tid of the thread; all as the first namespaces have them */
	__u64 cgroup, time;		/* nanoseconds of CLOCK_BOOTTIME */
	char comm[16];			/* of the thread */
};

struct side_key {
	__u64 cookie, netns;		/* of the socket; netns 0 where it is not known */
	__u32 local[4], remote[4];	/* network byte order; IPv4 as ::ffff:a.b.c.d */
	__u16 lport, rport;		/* host byte order; of ICMP the echo id and 0 */
	__u8 proto, unused[3];
};

struct side {
	struct actor owner;		/* see enum how */
	struct actor user;		/* who sent or received last, as far as it was known then */
	__u64 first, closed;		/* as actor.time; closed is 0 while the socket is open */
	__u32 how, flags;
	__u32 users, unused;		/* how often `user` changed */
};

/* What a socket remembers. Children of a listening socket begin with a copy of its memory. */
struct memory {
	struct actor owner;
	__u64 cookie, first;
	__u32 how, flags;
	__u32 settled;			/* TCP: its one side is out; nothing is left to do for a packet */
	__u32 changes;			/* several processes name peers in sendto(2): each datagram is told by itself */
	struct side_key key;		/* of the last side */
};

struct user {
	struct actor actor;
	__u64 cookie;
	__u32 changes, unused;
};

/* What sources/bpf.py reads to make the maps; sizes of keys and values as in struct bpf_map_def of old. */
struct map {
	__u32 type, key_size, value_size, entries, flags;
};

#define MAP(name, ...) struct map name SEC("maps") = { __VA_ARGS__ }

MAP(ct_memory, BPF_MAP_TYPE_SK_STORAGE, 4, sizeof(struct memory), 0, BPF_F_NO_PREALLOC | BPF_F_CLONE);
MAP(ct_sides, BPF_MAP_TYPE_HASH, sizeof(struct side_key), sizeof(struct side), 65536, 0);
MAP(ct_users, BPF_MAP_TYPE_LRU_HASH, 8, sizeof(struct user), 65536, 0);
/* 0: rows written; 1: rows that did not fit; 2: users noted; 3: our own process, which is never an owner */
MAP(ct_numbers, BPF_MAP_TYPE_ARRAY, 4, 8, 4, 0);
MAP(ct_recent, BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 8, 0);

enum { ROWS, LOST, USERS, SELF };

static inline void count(__u32 which)
{
	__u64 *number = bpf_map_lookup_elem(&ct_numbers, &which);

	if (number)
		__sync_fetch_and_add(number, 1);
}

static inline __u32 current(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

static inline int is_self(__u32 pid)
{
	__u32 which = SELF;
	__u64 *self = bpf_map_lookup_elem(&ct_numbers, &which);

	return self && *self == pid;
}

static inline void fill(struct actor *actor)
{
	__u64 ids = bpf_get_current_pid_tgid(), user = bpf_get_current_uid_gid();

	actor->pid = ids >> 32;
	actor->tid = ids;
	actor->uid = user;
	actor->gid = user >> 32;
	actor->cgroup = bpf_get_current_cgroup_id();
	actor->time = bpf_ktime_get_boot_ns();
	bpf_get_current_comm(actor->comm, sizeof(actor->comm));
}

/*
 * Writes a row anew, from what the socket remembers. Never through a pointer into the map: user space takes rows out
 * meanwhile, and the place may be another row's already.
 */
static inline void tell(struct memory *memory, struct side_key *key, __u32 how, __u64 closed)
{
	struct side side = {};
	struct user *user;

	side.owner = memory->owner;
	side.first = memory->first;
	side.closed = closed;
	side.how = how;
	side.flags = memory->flags;
	user = bpf_map_lookup_elem(&ct_users, &key->cookie);
	if (user) {
		side.user = user->actor;
		side.users = user->changes;
		if (user->cookie != key->cookie) { /* the place was another's in that moment */
			side.user.pid = 0;
			side.users = 0;
		}
	}
	if (closed && !side.user.pid && memory->owner.pid != current()) {
		fill(&side.user);
		side.flags |= RELEASED;
	}
	if (bpf_map_update_elem(&ct_sides, key, &side, BPF_ANY))
		count(LOST);
	count(ROWS);
}

/* How an owner is known where the last one that named a peer need not be this one's. */
static inline __u32 weak(struct memory *memory)
{
	return memory->how < SENDMSG || (memory->flags & OUT && !memory->changes) ? memory->how : BIND;
}

/* ---- calls of processes ---- */

static inline struct memory *remember(struct bpf_sock *sk, void *ctx, __u32 how)
{
	struct memory *memory = bpf_sk_storage_get(&ct_memory, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!memory)
		return 0;
	if (!memory->cookie)
		memory->cookie = bpf_get_socket_cookie(ctx);
	if (!memory->key.netns)
		memory->key.netns = bpf_get_netns_cookie(ctx);
	if (how >= CONNECT || memory->owner.pid != current()) /* its program, user or name may be another one now */
		fill(&memory->owner);
	memory->how = how;
	return memory;
}

SEC("cgroup/sock_create") int ct_create(struct bpf_sock *ctx)
{
	remember(ctx, ctx, CREATE);
	return 1;
}

SEC("cgroup/post_bind4") int ct_bind4(struct bpf_sock *ctx)
{
	remember(ctx, ctx, BIND);
	return 1;
}

SEC("cgroup/post_bind6") int ct_bind6(struct bpf_sock *ctx)
{
	remember(ctx, ctx, BIND);
	return 1;
}

static inline int connects(struct bpf_sock_addr *ctx)
{
	struct memory *memory;

	if (!ctx->sk)
		return 1;
	memory = remember(ctx->sk, ctx, CONNECT);
	if (memory) {
		memory->settled = 0;
		memory->flags = 0;
	}
	return 1;
}

SEC("cgroup/connect4") int ct_connect4(struct bpf_sock_addr *ctx) { return connects(ctx); }
SEC("cgroup/connect6") int ct_connect6(struct bpf_sock_addr *ctx) { return connects(ctx); }

/* The row of one datagram, with the process whose call it is. */
static inline void tell_datagram(struct bpf_sock_addr *ctx, struct memory *memory, __u32 how, int version)
{
	struct side side = {};
	struct side_key key = memory->key;

	key.cookie = memory->cookie;
	key.proto = ctx->sk->protocol;
	key.rport = net16(ctx->user_port);
	if (version == 4) { /* an IPv4 peer of an IPv6 socket comes as a mapped address, or as IPv4 */
		key.remote[0] = key.remote[1] = 0;
		key.remote[2] = net32(0xffff);
		key.remote[3] = ctx->user_ip4;
	} else {
		key.remote[0] = ctx->user_ip6[0];
		key.remote[1] = ctx->user_ip6[1];
		key.remote[2] = ctx->user_ip6[2];
		key.remote[3] = ctx->user_ip6[3];
	}
	if (how == SENDMSG) { /* where the socket is bound to no address, any of ours */
		key.lport = ctx->sk->src_port;
		if (version == 4) {
			key.local[0] = key.local[1] = 0;
			key.local[2] = net32(0xffff);
			key.local[3] = ctx->sk->src_ip4;
		} else {
			key.local[0] = ctx->sk->src_ip6[0];
			key.local[1] = ctx->sk->src_ip6[1];
			key.local[2] = ctx->sk->src_ip6[2];
			key.local[3] = ctx->sk->src_ip6[3];
		}
	}
	fill(&side.owner);
	side.first = side.owner.time;
	side.how = how;
	side.flags = how == SENDMSG ? OUT : IN;
	if (bpf_map_update_elem(&ct_sides, &key, &side, BPF_ANY))
		count(LOST);
	count(ROWS);
}

/*
 * sendto(2) and recvfrom(2) with an address. Sockets stay with one process nearly always, and packets tell of it. Where
 * several share one, what it remembers may be another's in the next moment: then each call tells for itself.
 */
static inline int talks(struct bpf_sock_addr *ctx, __u32 how, int version)
{
	struct memory *memory;
	__u32 pid = current();

	if (!ctx->sk)
		return 1;
	memory = bpf_sk_storage_get(&ct_memory, ctx->sk, 0, 0);
	if (memory && memory->owner.pid == pid && memory->how >= SENDMSG && !memory->changes)
		return 1;
	if (is_self(pid))
		return 1;
	if (memory && memory->how >= SENDMSG && memory->owner.pid != pid)
		memory->changes = 1;
	if (!memory || !memory->changes) {
		memory = remember(ctx->sk, ctx, how);
		if (!memory)
			return 1;
		if (memory->owner.pid != pid) /* another one came in between */
			memory->changes = 1;
	}
	if (memory->changes || (how == RECVMSG && memory->flags & IN))
		tell_datagram(ctx, memory, how, version);
	memory->flags = 0; /* the next packet tells of its sender */
	return 1;
}

SEC("cgroup/sendmsg4") int ct_sendmsg4(struct bpf_sock_addr *ctx) { return talks(ctx, SENDMSG, 4); }
SEC("cgroup/sendmsg6") int ct_sendmsg6(struct bpf_sock_addr *ctx) { return talks(ctx, SENDMSG, 6); }
SEC("cgroup/recvmsg4") int ct_recvmsg4(struct bpf_sock_addr *ctx) { return talks(ctx, RECVMSG, 4); }
SEC("cgroup/recvmsg6") int ct_recvmsg6(struct bpf_sock_addr *ctx) { return talks(ctx, RECVMSG, 6); }

/*
 * accept(2) with room for an address asks for it, in the process that accepts; without, nobody asks. Who asks first is
 * who accepted it; anybody who has the socket may ask later.
 */
static inline int accepts(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct memory *memory;
	__u32 pid = current();

	if (!sk || sk->protocol != TCP)
		return 1;
	memory = bpf_sk_storage_get(&ct_memory, sk, 0, BPF_SK_STORAGE_GET_F_CREATE); /* the listener may be older than we */
	if (!memory || memory->how == CONNECT || memory->how == ACCEPT || is_self(pid))
		return 1;
	if (!memory->key.netns)
		memory->key.netns = bpf_get_netns_cookie(ctx);
	memory->cookie = bpf_get_socket_cookie(ctx);
	fill(&memory->owner);
	memory->how = ACCEPT;
	memory->flags &= ~INHERITED;
	if (memory->settled)
		tell(memory, &memory->key, ACCEPT, 0);
	return 1;
}

SEC("cgroup/getpeername4") int ct_accept4(struct bpf_sock_addr *ctx) { return accepts(ctx); }
SEC("cgroup/getpeername6") int ct_accept6(struct bpf_sock_addr *ctx) { return accepts(ctx); }

SEC("cgroup/sock_release") int ct_release(struct bpf_sock *ctx)
{
	struct memory *memory = bpf_sk_storage_get(&ct_memory, ctx, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!memory)
		return 1;
	if (memory->key.cookie || memory->changes) {
		memory->key.cookie = memory->cookie;
		tell(memory, &memory->key, weak(memory), bpf_ktime_get_boot_ns());
		bpf_map_delete_elem(&ct_users, &memory->cookie);
	}
	memory->settled = 1; /* its last packets, as a FIN, are no news */
	return 1;
}

/*
 * Who really sends and receives (Linux 6.3 and later). What a processor saw last is looked at first, as one word that
 * stands for a socket and a process.
 */
static inline int uses(struct bpf_raw_tracepoint_args *ctx)
{
	struct user user = {}, *known;
	__u64 cookie = 0, both, *recent;
	__u32 pid, slot;

	if ((int)ctx->args[1] <= 0) /* nothing was sent or received */
		return 0;
	bpf_probe_read_kernel(&cookie, sizeof(cookie), (void *)ctx->args[0] + COOKIE);
	if (!cookie) /* not one of ours */
		return 0;
	pid = current();
	both = cookie ^ pid * 0x9E3779B97F4A7C15ULL;
	slot = cookie & 7;
	recent = bpf_map_lookup_elem(&ct_recent, &slot);
	if (!recent || *recent == both)
		return 0;
	*recent = both;
	known = bpf_map_lookup_elem(&ct_users, &cookie);
	if (known && known->actor.pid == pid)
		return 0;
	if (known)
		user.changes = known->changes + 1;
	fill(&user.actor);
	user.cookie = cookie;
	bpf_map_update_elem(&ct_users, &cookie, &user, BPF_ANY);
	count(USERS);
	return 0;
}

SEC("raw_tp/sock_send_length") int ct_sent(struct bpf_raw_tracepoint_args *ctx) { return uses(ctx); }
SEC("raw_tp/sock_recv_length") int ct_received(struct bpf_raw_tracepoint_args *ctx) { return uses(ctx); }

/* ---- packets ---- */

/*
 * What a packet's headers say: of IPv4 and IPv6 with up to three extension headers. On their way out headers are as NAT
 * made them, on their way in as NAT left them; user space knows both.
 */
static inline int parse(struct __sk_buff *skb, struct side_key *key, int out)
{
	__u8 head[48] = {}, next, *ports;
	__u32 at;

	if (skb->protocol == net16(0x0800)) {
		if (bpf_skb_load_bytes(skb, 0, head, 28) && bpf_skb_load_bytes(skb, 0, head, 24) &&
		    bpf_skb_load_bytes(skb, 0, head, 20))
			return 0;
		key->local[2] = key->remote[2] = net32(0xffff);
		key->local[3] = *(__u32 *)(head + (out ? 12 : 16));
		key->remote[3] = *(__u32 *)(head + (out ? 16 : 12));
		next = head[9];
		at = (head[0] & 15) * 4;
		ports = head + 20;
		if (at != 20 && bpf_skb_load_bytes(skb, at, ports, 8) && bpf_skb_load_bytes(skb, at, ports, 4))
			return 0;
	} else if (skb->protocol == net16(0x86DD)) {
		if (bpf_skb_load_bytes(skb, 0, head, 48) && bpf_skb_load_bytes(skb, 0, head, 44) &&
		    bpf_skb_load_bytes(skb, 0, head, 40))
			return 0;
		__builtin_memcpy(key->local, head + (out ? 8 : 24), 16);
		__builtin_memcpy(key->remote, head + (out ? 24 : 8), 16);
		next = head[6];
		at = 40;
		ports = head + 40;
#pragma unroll
		for (int i = 0; i < 3; i++) {
			if (next != 0 && next != 43 && next != 44 && next != 60)
				break;
			at += next == 44 ? 8 : (ports[1] + 1) * 8;
			next = ports[0];
			if (bpf_skb_load_bytes(skb, at, ports, 8) && bpf_skb_load_bytes(skb, at, ports, 4))
				return 0;
		}
	} else {
		return 0;
	}
	key->proto = next;
	if (next == TCP || next == UDP || next == 132 || next == 136) {
		__u16 from = net16(*(__u16 *)ports), to = net16(*(__u16 *)(ports + 2));

		key->lport = out ? from : to;
		key->rport = out ? to : from;
	} else if ((next == ICMP && (ports[0] == 8 || ports[0] == 0)) ||
		   (next == ICMPV6 && (ports[0] == 128 || ports[0] == 129))) {
		key->lport = net16(*(__u16 *)(ports + 4));
	}
	return 1;
}

/* TCP as the socket sees it, before NAT on the way out. */
static inline void connection(struct bpf_sock *sk, struct side_key *key)
{
	__u32 port = *(volatile __u32 *)&sk->dst_port; /* older kernels want all four bytes read */
	__u32 family = sk->family, source = sk->src_ip4, target = sk->dst_ip4;

	/* else clang reads one of two fields by a pointer it has computed, which the verifier refuses */
	asm volatile("" : "+r"(source), "+r"(target));
	key->proto = TCP;
	key->lport = sk->src_port;
	key->rport = net16((__u16)port);
	if (family == AF_INET) {
		key->local[2] = key->remote[2] = net32(0xffff);
		key->local[3] = source;
		key->remote[3] = target;
		return;
	}
	key->local[0] = sk->src_ip6[0];
	key->local[1] = sk->src_ip6[1];
	key->local[2] = sk->src_ip6[2];
	key->local[3] = sk->src_ip6[3];
	key->remote[0] = sk->dst_ip6[0];
	key->remote[1] = sk->dst_ip6[1];
	key->remote[2] = sk->dst_ip6[2];
	key->remote[3] = sk->dst_ip6[3];
}

static inline int same_ends(struct side_key *a, struct side_key *b)
{
	__u64 *x = (__u64 *)a->local, *y = (__u64 *)b->local;

	return x[3] == y[3] && x[1] == y[1] && *(__u32 *)&a->lport == *(__u32 *)&b->lport && x[2] == y[2] && x[0] == y[0];
}

static inline int packet(struct __sk_buff *skb, __u32 direction)
{
	struct bpf_sock *sk = skb->sk;
	struct side_key key = {};
	struct memory *memory;
	__u64 cookie, now;
	int tcp;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	memory = bpf_sk_storage_get(&ct_memory, sk, 0, 0);
	if (memory && memory->settled)
		return 1;
	tcp = sk->protocol == TCP;
	if (tcp) {
		if (sk->state == BPF_TCP_LISTEN)
			return 1; /* a flood of SYNs is no flow of a process */
		connection(sk, &key);
	} else {
		if (direction == IN && sk->type == SOCK_RAW)
			return 1; /* each raw socket gets a copy of everything */
		if (!parse(skb, &key, direction == OUT))
			return 1;
		if (memory && memory->flags & direction && same_ends(&key, &memory->key))
			return 1;
		if (memory && memory->changes && direction == OUT && sk->state != BPF_TCP_ESTABLISHED)
			return 1; /* told by its call */
	}
	if (!memory) { /* older than us, or the kernel's */
		memory = bpf_sk_storage_get(&ct_memory, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (!memory) {
			count(LOST);
			return 1;
		}
	}
	cookie = bpf_get_socket_cookie(skb);
	now = bpf_ktime_get_boot_ns();
	key.cookie = cookie;
	key.netns = memory->key.netns;
	if (tcp) {
		memory->flags = memory->cookie && memory->cookie != cookie ? INHERITED : 0;
		memory->settled = 1;
		memory->first = now;
	} else if (!same_ends(&key, &memory->key) || memory->key.cookie != cookie) {
		memory->flags = 0;
		memory->first = now;
	}
	memory->flags |= direction;
	memory->cookie = cookie;
	memory->key = key;
	tell(memory, &key, weak(memory), 0);
	return 1;
}

SEC("cgroup_skb/egress") int ct_egress(struct __sk_buff *skb) { return packet(skb, OUT); }
SEC("cgroup_skb/ingress") int ct_ingress(struct __sk_buff *skb) { return packet(skb, IN); }

char _license[] SEC("license") = "GPL";
