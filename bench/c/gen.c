/*
 * A load generator for connection tracking: COUNT new flows, RATE a second (0: as fast as it goes).
 *
 *     gen udp|udp6|mix|tcp COUNT RATE SEED
 *
 * udp, udp6  one packet a flow through sendmmsg(), to an address of its own in 10.0.0.0/8 or fd00::/8
 * mix        the same with raw packets from 10.0.0.1: six UDP, three TCP SYN and one ICMP echo request of every ten
 * tcp        whole connections on loopback: connect, accept, close on both sides, each to an address of its own
 *
 * Run it only in a network namespace made for it, where 10.0.0.1/8 and fd00::1/8 are on a dummy device that swallows
 * what it is given. SEED (0 to 59) selects the addresses: two runs with different seeds share no flow. Prints one JSON
 * object on stdout.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, SEEDS = 60, ADDRESS_BITS = 18, MOST = 4000000, MOST_ERRORS = 100000 };

static const uint32_t OWN_ADDRESS = 0x0a000001; /* 10.0.0.1 */

struct load {
	long count, sent, errors;
	double rate, start;
	unsigned seed;
};

struct packet {
	struct iphdr ip;
	union {
		struct udphdr udp;
		struct tcphdr tcp;
		struct icmphdr icmp;
	};
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

/* How many flows may be made now, at most `most`; sleeps a little when that is none. */
static long due(const struct load *load, long most)
{
	long n = load->count - load->sent;

	if (load->rate > 0) {
		long allowed = (long)((now() - load->start) * load->rate) - load->sent;

		if (allowed <= 0) {
			nanosleep(&(struct timespec){0, 50000}, NULL);
			return 0;
		}
		if (n > allowed)
			n = allowed;
	}
	return n > most ? most : n;
}

/* Where flow k goes: 2^18 addresses of the seed's own, and then the next port. */
static uint32_t address_of(const struct load *load, long k)
{
	return 0x0a000000U | (1 + load->seed) << ADDRESS_BITS | (k & ((1 << ADDRESS_BITS) - 1));
}

static uint16_t port_of(long k)
{
	return 2000 + (k >> ADDRESS_BITS);
}

static uint16_t checksum(const void *data, size_t size, uint32_t sum)
{
	const unsigned char *p = data;

	for (; size > 1; size -= 2, p += 2)
		sum += p[0] << 8 | p[1];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum);
}

/* Fills in packet k and returns its size. The kernel adds the checksum of the IP header. */
static size_t make_packet(struct packet *p, const struct load *load, long k)
{
	uint32_t to = address_of(load, k);
	uint16_t source = htons(1024 + k % 60000), port = htons(port_of(k));
	size_t size = sizeof p->ip;

	memset(p, 0, sizeof *p);
	p->ip.version = 4;
	p->ip.ihl = 5;
	p->ip.ttl = 64;
	p->ip.saddr = htonl(OWN_ADDRESS);
	p->ip.daddr = htonl(to);
	if (k % 10 < 6) {
		p->ip.protocol = IPPROTO_UDP;
		p->udp = (struct udphdr){.source = source, .dest = port, .len = htons(sizeof p->udp)};
		size += sizeof p->udp;
	} else if (k % 10 < 9) {
		uint32_t pseudo = (OWN_ADDRESS >> 16) + (OWN_ADDRESS & 0xffff) + (to >> 16) + (to & 0xffff) + IPPROTO_TCP +
				  sizeof p->tcp;

		p->ip.protocol = IPPROTO_TCP;
		p->tcp = (struct tcphdr){.source = source, .dest = port, .seq = htonl(k), .doff = 5, .syn = 1, .window = 0xffff};
		p->tcp.check = checksum(&p->tcp, sizeof p->tcp, pseudo);
		size += sizeof p->tcp;
	} else {
		p->ip.protocol = IPPROTO_ICMP;
		p->icmp.type = ICMP_ECHO;
		p->icmp.un.echo.id = htons(k);
		p->icmp.un.echo.sequence = htons(1);
		p->icmp.checksum = checksum(&p->icmp, sizeof p->icmp, 0);
		size += sizeof p->icmp;
	}
	p->ip.tot_len = htons(size);
	return size;
}

static int send_packets(struct load *load, int family, int raw)
{
	static struct mmsghdr messages[BATCH];
	static struct iovec vectors[BATCH];
	static struct packet packets[BATCH];
	static struct sockaddr_in to4[BATCH];
	static struct sockaddr_in6 to6[BATCH];
	int fd = raw ? socket(AF_INET, SOCK_RAW, IPPROTO_RAW) : socket(family, SOCK_DGRAM, 0), size = 16 << 20;

	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
	for (int i = 0; i < BATCH; i++) {
		struct msghdr *m = &messages[i].msg_hdr;

		to4[i].sin_family = AF_INET;
		to6[i].sin6_family = AF_INET6;
		to6[i].sin6_addr.s6_addr[0] = 0xfd;
		m->msg_name = family == AF_INET ? (void *)&to4[i] : (void *)&to6[i];
		m->msg_namelen = family == AF_INET ? sizeof to4[i] : sizeof to6[i];
		if (raw) {
			vectors[i].iov_base = &packets[i];
			m->msg_iov = &vectors[i];
			m->msg_iovlen = 1;
		}
	}
	while (load->sent < load->count && load->errors < MOST_ERRORS) {
		long n = due(load, BATCH), done;

		if (n == 0)
			continue;
		for (long i = 0; i < n; i++) {
			long k = load->sent + i;
			uint32_t address = htonl(address_of(load, k));

			to4[i].sin_addr.s_addr = address;
			memcpy(&to6[i].sin6_addr.s6_addr[12], &address, sizeof address);
			if (raw)
				vectors[i].iov_len = make_packet(&packets[i], load, k);
			else
				to4[i].sin_port = to6[i].sin6_port = htons(port_of(k));
		}
		done = sendmmsg(fd, messages, n, 0);
		if (done < 0)
			load->errors++;
		else
			load->sent += done;
	}
	return close(fd);
}

static int make_connections(struct load *load)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(5000 + load->seed)};
	int one = 1, server = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(server, (struct sockaddr *)&to, sizeof to) || listen(server, 1024))
		return -1;
	while (load->sent < load->count && load->errors < MOST_ERRORS) {
		int client, accepted;

		if (due(load, 1) == 0)
			continue;
		to.sin_addr.s_addr = htonl(0x7f010000U + load->sent);
		client = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(client, (struct sockaddr *)&to, sizeof to) == 0) {
			accepted = accept(server, NULL, NULL);
			close(client);
			close(accepted);
			load->sent++;
		} else {
			load->errors++;
			close(client);
		}
	}
	return close(server);
}

int main(int argc, char **argv)
{
	struct load load = {0};
	struct rusage used;
	int failed;

	if (argc == 5) {
		load.count = atol(argv[2]);
		load.rate = atof(argv[3]);
		load.seed = atoi(argv[4]);
	}
	if (argc != 5 || load.count < 1 || load.count > MOST || load.rate < 0 || load.seed >= SEEDS) {
		fprintf(stderr, "gen udp|udp6|mix|tcp COUNT RATE SEED (COUNT 1 to %d, SEED 0 to %d)\n", MOST, SEEDS - 1);
		return 2;
	}
	load.start = now();
	if (!strcmp(argv[1], "tcp"))
		failed = make_connections(&load);
	else if (!strcmp(argv[1], "mix"))
		failed = send_packets(&load, AF_INET, 1);
	else
		failed = send_packets(&load, strcmp(argv[1], "udp6") ? AF_INET : AF_INET6, 0);
	if (failed || load.sent < load.count) {
		fprintf(stderr, "gen: %ld of %ld flows, %ld errors: %s\n", load.sent, load.count, load.errors, strerror(errno));
		return 1;
	}
	getrusage(RUSAGE_SELF, &used);
	printf("{\"n\": %ld, \"errors\": %ld, \"seconds\": %.4f, \"user\": %.3f, \"sys\": %.3f}\n", load.sent, load.errors,
	       now() - load.start, used.ru_utime.tv_sec + used.ru_utime.tv_usec * 1e-6,
	       used.ru_stime.tv_sec + used.ru_stime.tv_usec * 1e-6);
	return 0;
}
