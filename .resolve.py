import re,subprocess
H=re.compile(r'<<<<<<< [^\n]*\n(.*?)=======\n(.*?)>>>>>>> [^\n]*\n',re.S)
def res(p, fs):
    s=open(p).read(); hunks=H.findall(s); print(p,len(hunks)); it=iter(fs)
    def f(m):
        x=next(it)
        return x(m.group(1),m.group(2)) if callable(x) else x
    s=H.sub(f,s); assert '<<<<<<<' not in s; open(p,'w').write(s)
ours=lambda a,b:a
theirs=lambda a,b:b
both=lambda a,b:a+b
rev=lambda a,b:b+a
res('README.md',['''data from the server, too. `secure_sum` adds no noise: under masks (SecAgg+) the server learns the sum of a cohort's
updates, and no summand; real clients pin whom they are added up with (`docs/deploy.md`). With `distributed_dp`, in
simulations so far, each client adds its share of the noise to that sum, so that nobody has to be trusted, and there is
one noise for all. `docs/privacy.md` says what each hides from whom, and how to choose. With `epsilon` the noise is
chosen for the planned run; with `noise_multiplier` epsilon is
'''])
res('SECURITY.md',[lambda a,b: a.replace("What can't be had under masks: a bound on a malicious client's norm, and rules that look at single updates.\n","")+b])
res('docs/decisions.md',[rev]*1)
res('clients/masking.py',[
'''from fedpeft.privacy.secure_sum.notes import Notes
from fedpeft.privacy.secure_sum.roster import Membership
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.secure_sum.sum import SUMS, SecureSum
''', rev, rev,
'''        self.noise, self.identity = plan.noise, plan.identity
        self.secure: SecureSum = SUMS.build(plan.secure) if plan.noise is None else plan.noise[0]
        self.roster: Membership
        if self.identity is None:
            self.roster = simulated_roster(seed, plan.clients)
        else:
            self.roster = CertifiedRoster(self.identity, plan.clients)
''',
'''            given, secret = made(told), self._secret(instruction)
            numbers = given.integers(told, self.secure, self.seed, round, client, secret)
'''])
res('fedpeft/deployment/federation.py',['']*1)
res('fedpeft/deployment/shared_settings.py',['''    if isinstance(mechanism, SecureSum):
        mechanism.check_lies()
    elif mechanism is not None and (mechanism.audit or mechanism.summed or not mechanism.protects):
'''])
res('fedpeft/privacy/secure_sum/announcement.py',['''            context=struct.pack(">QI", seed, round) + self.to_bytes() + run.encode(),
            least=secure.least(self.clients),
'''])
res('fedpeft/server/masked_sum.py',[both])
res('fedpeft/server/preparation.py',['''        Instruction("prepare", 0, client, b"", base_precision=setup.profiles[client].base, attempt=entry.attempt)
        for client in (entry.cohort if secure.noisy else clients.under_way(0) or clients.joined(setup.clients))
    ]
    _announce(clients)
    size, numbers = (entries(shapes), BESIDE) if secure.noisy else (0, entries(shapes) + BESIDE)
    masked = MaskedSum(clients, secure, setup.config.seed, 0, size, numbers, 1.0)
'''])
p='fedpeft/deployment/served_settings.py'
s=open(p).read()
s=s.replace('''    if not mechanism.protects:
''','''    if mechanism.summed:
        raise ConfigError(f"--privacy {mechanism.name} works in simulations so far, and these clients are real")
    if not mechanism.protects:
''',1)
open(p,'w').write(s)
