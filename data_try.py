import time, numpy as np, torch
from unrolled.data.images import *
from unrolled.train.config import TrainConfig
t=time.time()
tr=open_images("digits","train"); te=open_images("digits","test"); print(len(tr),len(te),tr.native_size,tr.description,time.time()-t)
print(np.bincount(te.labels))
T=eval_transform((1,8,8),(0.5,),(0.5,))
t=time.time()
n=0
for b in train_loader(tr,T,batch_size=128,seed=0,steps=60*11): n+=len(b)
print("digits 60 epochs",n,time.time()-t)
T=eval_transform((1,16,16),(0.5,),(0.5,))
t=time.time()
for b in train_loader(tr,T,batch_size=128,seed=0,steps=60*11): pass
print("cached 16px",time.time()-t, b.images.shape)
d="/work/shared/data"
t=time.time(); c=open_images("cifar10","train",data_dir=d,val_fraction=.1); print(len(c),c.description,time.time()-t)
cfg=TrainConfig(pad_crop=4)
T=train_transform(cfg,(3,32,32),(.5,)*3,(.5,)*3)
t=time.time(); it=iter(train_loader(c,T,batch_size=128,seed=0)); b=next(it); print("first",time.time()-t)
t=time.time()
for _ in range(100): b=next(it)
print("per batch",(time.time()-t)/100, b.images.mean(), b.images.std(), b.labels[:10])
cfg=TrainConfig(pad_crop=4,auto_augment="rand-m9-n2",random_erasing=.25)
T=train_transform(cfg,(3,32,32),(.5,)*3,(.5,)*3)
t=time.time(); it=iter(train_loader(c,T,batch_size=128,seed=0)); 
for _ in range(10): b=next(it)
print("RA per batch",(time.time()-t)/10)
x=open_images("tiny-imagenet-32","test",data_dir=d); print(len(x),x.classes[:2])
