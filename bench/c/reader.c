/*
 * A minimal conntrack event reader: what the kernel's side of the job costs, and a lower bound for any reader.
 *
 * recvmmsg() fills a ring of fixed stride, each message is walked once for its original tuple, status and id. When
 * it has drained the socket it naps, so that one wake-up serves many events. Prints `ready` on stderr when it listens and
 * one JSON object on stdout when it ends: on SIGINT or SIGTERM, or after IDLE seconds without an event.
 *
 *     reader [-b BUFFER_MB] [-i IDLE_SECONDS] [-n NAP_MS]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_compat.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_MEMINFO
#define SO_MEMINFO 55
#endif

enum { BATCH = 512, STRIDE = 512, HEADER = 20, MEMINFO_DROPS = 8 };

struct flow {
	uint8_t src[16], dst[16];
	uint16_t sport, dport;
	uint8_t proto;
	uint32_t status, id;
};

static unsigned char ring[BATCH][STRIDE] __attribute__((aligned(4096)));
static volatile sig_atomic_t ended;

static void end(int signal_number)
{
	(void)signal_number;
	ended = 1;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static double seconds(struct timeval t)
{
	return t.tv_sec + t.tv_usec * 1e-6;
}

static inline uint16_t get16(const unsigned char *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof v);
	return v;
}

static inline uint32_t get32(const unsigned char *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof v);
	return v;
}

/* The attribute at `*p`: its type, with the payload's bounds; moves on `*p`. -1 at the end, or where lengths lie. */
static inline int attribute(const unsigned char **p, const unsigned char *limit, const unsigned char **from,
			    const unsigned char **to)
{
	const unsigned char *at = *p;
	unsigned length;

	if (limit - at < 4)
		return -1;
	length = get16(at);
	if (length < 4 || length > (size_t)(limit - at))
		return -1;
	*from = at + 4;
	*to = at + length;
	*p = at + ((length + 3) & ~3U);
	return get16(at + 2) & NLA_TYPE_MASK;
}

static inline void parse_ip(const unsigned char *p, const unsigned char *limit, struct flow *f)
{
	const unsigned char *from, *to;
	int type;

	while ((type = attribute(&p, limit, &from, &to)) >= 0) {
		size_t size = to - from;

		if (type == CTA_IP_V4_SRC && size == 4)
			memcpy(f->src, from, 4);
		else if (type == CTA_IP_V4_DST && size == 4)
			memcpy(f->dst, from, 4);
		else if (type == CTA_IP_V6_SRC && size == 16)
			memcpy(f->src, from, 16);
		else if (type == CTA_IP_V6_DST && size == 16)
			memcpy(f->dst, from, 16);
	}
}

static inline void parse_proto(const unsigned char *p, const unsigned char *limit, struct flow *f)
{
	const unsigned char *from, *to;
	int type;

	while ((type = attribute(&p, limit, &from, &to)) >= 0) {
		size_t size = to - from;

		if (type == CTA_PROTO_NUM && size >= 1)
			f->proto = *from;
		else if ((type == CTA_PROTO_SRC_PORT || type == CTA_PROTO_ICMP_ID) && size >= 2)
			f->sport = get16(from);
		else if (type == CTA_PROTO_DST_PORT && size >= 2)
			f->dport = get16(from);
	}
}

static inline void parse_tuple(const unsigned char *p, const unsigned char *limit, struct flow *f)
{
	const unsigned char *from, *to;
	int type;

	while ((type = attribute(&p, limit, &from, &to)) >= 0) {
		if (type == CTA_TUPLE_IP)
			parse_ip(from, to, f);
		else if (type == CTA_TUPLE_PROTO)
			parse_proto(from, to, f);
	}
}

static inline void parse(const unsigned char *message, size_t size, struct flow *f)
{
	const unsigned char *p = message + HEADER, *limit = message + size, *from, *to;
	int type;

	memset(f, 0, sizeof *f);
	if (size < HEADER)
		return;
	while ((type = attribute(&p, limit, &from, &to)) >= 0) {
		if (type == CTA_TUPLE_ORIG)
			parse_tuple(from, to, f);
		else if (type == CTA_STATUS && to - from >= 4)
			f->status = get32(from);
		else if (type == CTA_ID && to - from >= 4)
			f->id = get32(from);
	}
}

static int listen_to_events(int megabytes)
{
	struct sockaddr_nl address = {
		.nl_family = AF_NETLINK,
		.nl_groups = NF_NETLINK_CONNTRACK_NEW | NF_NETLINK_CONNTRACK_UPDATE | NF_NETLINK_CONNTRACK_DESTROY,
	};
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER), size = megabytes << 20, one = 1;

	if (fd < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size))
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof one);
	return bind(fd, (struct sockaddr *)&address, sizeof address) ? -1 : fd;
}

int main(int argc, char **argv)
{
	static struct mmsghdr messages[BATCH];
	static struct iovec vectors[BATCH];
	int megabytes = 64, option, fd;
	double idle = 0, nap = 5, first = 0, last;
	unsigned long n = 0, checksum = 0;
	uint32_t memory[10] = {0};
	socklen_t memory_size = sizeof memory;
	struct sigaction action = {.sa_handler = end};
	struct rusage before, after;
	struct timespec pause;
	struct flow f;

	while ((option = getopt(argc, argv, "b:i:n:")) != -1) {
		if (option == 'b')
			megabytes = atoi(optarg);
		else if (option == 'i')
			idle = atof(optarg);
		else if (option == 'n')
			nap = atof(optarg);
		else
			return 2;
	}
	if (megabytes < 1 || megabytes > 1023 || nap < 0 || nap >= 1000) {
		fprintf(stderr, "reader: BUFFER_MB is 1 to 1023, NAP_MS 0 to 999\n");
		return 2;
	}
	pause = (struct timespec){0, (long)(nap * 1e6)};
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	fd = listen_to_events(megabytes);
	if (fd < 0) {
		perror("reader");
		return 1;
	}
	for (int i = 0; i < BATCH; i++) {
		vectors[i] = (struct iovec){ring[i], STRIDE};
		messages[i].msg_hdr.msg_iov = &vectors[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	memset(ring, 0, sizeof ring);
	fprintf(stderr, "ready\n");
	getrusage(RUSAGE_SELF, &before);
	last = now();

	while (!ended) {
		struct pollfd wait = {.fd = fd, .events = POLLIN};
		int k = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);

		if (k <= 0) {
			if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS) {
				perror("reader");
				return 1;
			}
			if (poll(&wait, 1, 200) <= 0 && idle > 0 && now() - last > idle)
				break;
			continue;
		}
		for (int i = 0; i < k; i++) {
			parse(ring[i], messages[i].msg_len, &f);
			checksum += get32(f.src) ^ get32(f.dst) ^ f.sport ^ f.dport ^ f.proto ^ f.status ^ f.id;
		}
		last = now();
		if (n == 0)
			first = last;
		n += k;
		if (k < BATCH && nap > 0)
			nanosleep(&pause, NULL);
	}

	getrusage(RUSAGE_SELF, &after);
	getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &memory_size);
	printf("{\"n\": %lu, \"drops\": %u, \"user\": %.6f, \"sys\": %.6f, \"seconds\": %.4f, \"checksum\": %lu}\n", n,
	       memory[MEMINFO_DROPS], seconds(after.ru_utime) - seconds(before.ru_utime),
	       seconds(after.ru_stime) - seconds(before.ru_stime), n ? last - first : 0, checksum);
	return 0;
}
